//! What payment systems tell: signed as Standard Webhooks say, believed by the secrets in the replicated state, booked once.
//!
//! A message may come as often as its sender likes: the reference of what was paid, or of what was given back, or else the message's own
//! id, moves money once. What was given back is a fact: it is booked also when the credit is spent, and the organization owes it. It is no
//! more than was paid, as far as the payment is known.

use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use tollway_proto::admin::account::{Payment, PaymentEvent, PaymentSecrets, PaymentSenders, PaymentTaken};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::command::{Command, MoveCredit};
use tollway_shared::credit::{CreditMove, PayMethod};
use tollway_shared::secret::Secret;
use tollway_shared::{seal, webhook};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::account::{REFERENCE_BYTES_MAX, within};
use super::body::{BODY_BYTES_MAX, parse_body, read_body};
use super::exchange::{Answer, Head, Write};
use super::fault::Fault;
use crate::clock;
use crate::state::credit::SECRETS_MAX;

/// Who books what payment systems tell.
const ACTOR: &str = "payments";
/// What is booked.
const CURRENCY: &str = "USD";
/// What secrets are sealed for.
const SEALED_FOR: &[u8] = b"payment-webhook";

/// A message that is not ignored, as far as it is read: errors name fields as the sender wrote them.
#[derive(Serialize, Deserialize)]
struct Paid {
    data: Payment,
}

/// Sets the secrets of senders of payments, in place of those before. None: no payment is believed.
#[utoipa::path(put, path = "/webhooks/payments", tag = "credits", request_body = PaymentSecrets,
    responses((status = 200, body = PaymentSenders)), security(("admin_key" = ["owner"])))]
async fn put_secrets(
    Shared(api): Shared<Arc<Api>>,
    write: Write<PaymentSecrets>,
) -> Result<Answer<PaymentSenders>, Fault> {
    let texts = write.body.secrets;
    let wrong = |why: String| Fault::at(ProblemCode::Invalid, "secrets", format!("`secrets` {why}"));
    if texts.len() > SECRETS_MAX {
        return Err(wrong(format!("must be at most {SECRETS_MAX}")));
    }
    let mut sealed = Vec::new();
    for text in &texts {
        webhook::secret(text.expose()).map_err(|fault| wrong(fault.to_string()))?;
        sealed.push(seal::seal(&api.root, SEALED_FOR, text.expose().as_bytes()));
    }
    let receipt = api.write(write.head, Command::PutPaymentSecrets(sealed)).await?;
    let secrets = texts.len();
    Ok(Answer::of(receipt.revision, PaymentSenders { secrets }))
}

/// Takes a message of a payment system, signed with one of the secrets: headers `webhook-id`, `webhook-timestamp` (not more than 5
/// minutes from now) and `webhook-signature` (`v1`).
#[utoipa::path(post, path = "/webhooks/payments", tag = "credits", request_body = PaymentEvent,
    responses((status = 200, body = PaymentTaken)), security(()))]
async fn take_payment(
    Shared(api): Shared<Arc<Api>>,
    request: Request,
) -> Result<Answer<PaymentTaken>, Fault> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, BODY_BYTES_MAX).await?;
    let id = api.believed(&parts.headers, &body).await?;
    let event: PaymentEvent = parse_body(&body)?;
    let is_refund = match event.kind.as_str() {
        "payment.succeeded" => false,
        "payment.refunded" => true,
        _ => {
            let revision = api.cluster.state().revision;
            return Ok(Answer::of(revision, PaymentTaken { transfer: None }));
        }
    };
    if !event.data.is_object() {
        let detail = "`data` must be a JSON object: `{…}`";
        return Err(Fault::at(ProblemCode::Invalid, "data", detail));
    }
    let Paid { data: payment } = parse_body(&body)?;
    let currency = payment.currency.as_deref().unwrap_or(CURRENCY);
    if !currency.eq_ignore_ascii_case(CURRENCY) {
        let detail = format!("`data.currency` must be `{CURRENCY}`: accounts are in US dollars");
        return Err(Fault::at(ProblemCode::Invalid, "data.currency", detail));
    }
    let amount = payment.amount.0;
    let made = if is_refund {
        CreditMove::TakenBack { amount }
    } else {
        let method = payment.method.map_or(PayMethod::Card, PayMethod::from);
        CreditMove::TopUp { method, amount }
    };
    let texts = [
        ("data.reference", &payment.reference),
        ("data.refund", &payment.refund),
    ];
    for (field, text) in texts {
        within(field, text.as_deref().unwrap_or("-"), 1, REFERENCE_BYTES_MAX)?;
    }
    within("webhook-id", &id, 1, REFERENCE_BYTES_MAX)?;
    let paid = payment.reference.clone().filter(|_| is_refund);
    // A payment may be given back in parts, so its own reference does not tell one refund from the next.
    let (reference, reason) = match (payment.reference, payment.refund) {
        (paid, refund) if is_refund => (
            refund.map_or_else(|| format!("webhook:{id}"), |refund| format!("refund:{refund}")),
            paid.map_or_else(String::new, |paid| format!("payment {paid}")),
        ),
        (Some(reference), _) => (reference, String::new()),
        (None, _) => (format!("webhook:{id}"), String::new()),
    };
    let head = Head {
        actor: ACTOR.to_owned(),
        if_revision: None,
        idempotency: None, // the reference is remembered for much longer
    };
    let command = Command::MoveCredit(MoveCredit {
        organization: payment.organization.0,
        made,
        reference: reference.clone(),
        payment: paid,
        reason,
    });
    let receipt = api.write(head, command).await.map_err(Fault::in_data)?;
    let state = api.after(&receipt).await;
    let booked = state.payments.get(&reference);
    let transfer = booked.map(|booked| format!("{}/{}", booked.organization, booked.sequence));
    Ok(Answer::of(receipt.revision, PaymentTaken { transfer }))
}

impl Fault {
    /// The refusal of a movement, by the names of the message that asks for it.
    fn in_data(self) -> Self {
        let mut problem = self.problem();
        if let Some(field) = problem.field.take() {
            let named = format!("data.{field}");
            let detail = problem
                .detail
                .replacen(&format!("`{field}`"), &format!("`{named}`"), 1);
            (problem.detail, problem.field) = (detail, Some(named));
        }
        Self::from(problem)
    }
}

impl Api {
    /// The id of a message that one of the known senders has signed just now.
    ///
    /// A secret may have been removed at another replica a moment ago, so the newest ones decide; what strangers send makes no replica ask
    /// for them.
    async fn believed(&self, headers: &HeaderMap, body: &[u8]) -> Result<String, Fault> {
        self.check_signature(headers, body)?;
        self.newest().await?;
        self.check_signature(headers, body)
    }

    /// The id of a message that is signed with one of the secrets that this replica knows.
    fn check_signature(&self, headers: &HeaderMap, body: &[u8]) -> Result<String, Fault> {
        let refused = |detail: String| Fault::new(ProblemCode::Unauthenticated, detail);
        let state = self.state();
        if state.payment_secrets.is_empty() {
            return Err(refused("no sender of payments is known here".to_owned()));
        }
        let opened = state.payment_secrets.iter().map(|sealed| {
            let text = seal::open(&self.root, SEALED_FOR, sealed).ok()?;
            webhook::secret(std::str::from_utf8(text.expose()).ok()?).ok()
        });
        let secrets: Vec<Secret<Vec<u8>>> = opened.flatten().collect();
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let signed = webhook::Signed {
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body,
        };
        signed
            .check(secrets.iter(), clock::now())
            .map_err(|fault| refused(fault.to_string()))?;
        Ok(signed.id.to_owned())
    }
}

/// The routes of payments.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(put_secrets, take_payment))
}
