//! Reading money: exports, invoices, what other prices would have cost, what a period will cost, what providers say. Pure functions
//! over the hourly sums of the billing store; who asks and where the sums come from is the business of [`admin`](crate::admin).
//!
//! | file | what |
//! |---|---|
//! | [`mod@line`] | an hourly sum |
//! | [`meter`] | a sum by meter: what was charged, and counts × price |
//! | [`account`] | what an organization's account says of a stretch of time |
//! | [`fee`] | fees on own credentials; accounts beside the usage that moved them |
//! | [`focus`] | the FOCUS 1.4 export |
//! | [`invoice`], [`invoice_page`] | what an organization owes for a month, and the page to print |
//! | [`re_rate`] | what other prices would have cost |
//! | [`forecast`] | where spending is heading |
//! | [`statement`], [`reconcile`] | a provider's account of usage, and the comparison with ours |

pub mod account;
pub mod fee;
pub mod focus;
pub mod forecast;
pub mod invoice;
pub mod invoice_page;
pub mod line;
pub mod meter;
pub mod re_rate;
pub mod reconcile;
#[cfg(test)]
mod sample;
pub mod statement;
