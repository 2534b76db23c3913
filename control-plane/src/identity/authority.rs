//! The cluster's certificate authority: made once, sealed in the replicated state, opened to issue.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tollway_shared::ids::ClusterId;
use tollway_shared::seal::{self, Key, Sealed, sha256};
use tollway_shared::time::UnixMillis;

use super::{CONTROL_NAME, IdentityFault, PeerIdentity, replica_name};
use crate::state::State;

/// Life of the authority's own certificate: ten years.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Default life of an issued certificate.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How far clocks may be behind: certificates start this much earlier.
const SKEW: Duration = Duration::from_secs(300);
/// Most DNS and IP names in one certificate.
pub const NAMES_MAX: usize = 16;
/// Longest certificate request that is read, in bytes.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// The authority with its private key.
pub struct Authority {
    cluster: ClusterId,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes the authority of a new cluster.
    pub fn create(cluster: ClusterId, now: UnixMillis) -> Result<Self, IdentityFault> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("tollway {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, now, AUTHORITY_LIFE);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self {
            cluster,
            certificate_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// Opens the authority of an existing cluster.
    pub fn open(
        cluster: ClusterId,
        certificate_pem: &str,
        key: &Sealed,
        sealing_key: &Key,
    ) -> Result<Self, IdentityFault> {
        let plain = seal::open(sealing_key, &aad(&cluster), key)?;
        let text = std::str::from_utf8(plain.expose())
            .map_err(|_| IdentityFault::Bad("the authority's key is not text".into()))?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, KeyPair::from_pem(text)?)?;
        Ok(Self {
            cluster,
            certificate_pem: certificate_pem.to_owned(),
            issuer,
        })
    }

    /// Opens the authority that is in the replicated state.
    pub fn of_state(state: &State, sealing_key: &Key) -> Result<Self, IdentityFault> {
        let cluster = state.cluster.as_ref().ok_or(IdentityFault::NoCluster)?;
        Self::open(
            cluster.id.clone(),
            &cluster.authority_pem,
            &cluster.authority_key,
            sealing_key,
        )
    }

    /// The private key (PKCS#8 PEM), sealed for the replicated state.
    pub fn sealed_key(&self, sealing_key: &Key) -> Sealed {
        let mut plain = self.issuer.key().serialize_pem();
        let sealed = seal::seal(sealing_key, &aad(&self.cluster), plain.as_bytes());
        zeroize::Zeroize::zeroize(&mut plain);
        sealed
    }

    /// The authority's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The cluster it speaks for.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Issues a certificate for `identity` to whoever holds the key of `request_pem`.
    ///
    /// - `hosts`: DNS names and IP addresses under which a replica is reached; ignored for nodes, which serve nothing with it.
    /// - The request's own names and extensions are dropped: only its public key is used.
    pub fn issue(
        &self,
        request_pem: &str,
        identity: &PeerIdentity,
        hosts: &[String],
        now: UnixMillis,
        life: Duration,
    ) -> Result<String, IdentityFault> {
        if request_pem.len() > REQUEST_BYTES_MAX {
            return Err(IdentityFault::Bad(format!(
                "a certificate request may have at most {REQUEST_BYTES_MAX} bytes"
            )));
        }
        let request = CertificateSigningRequestParams::from_pem(request_pem)?;
        let mut params = CertificateParams::default();
        let uri = identity.uri(&self.cluster);
        params.distinguished_name = name(match identity {
            PeerIdentity::Replica(_) => "tollway replica",
            PeerIdentity::Node { .. } => "tollway node",
        });
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let PeerIdentity::Replica(id) = identity {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
            let own = [CONTROL_NAME.to_owned(), replica_name(*id)];
            let fixed = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
            let mut names: Vec<&String> = own.iter().chain(&fixed).chain(hosts).collect();
            names.sort();
            names.dedup();
            if names.len() > NAMES_MAX {
                return Err(IdentityFault::Bad(format!(
                    "at most {NAMES_MAX} names are allowed"
                )));
            }
            for host in names {
                params.subject_alt_names.push(subject_name(host)?);
            }
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, now, life);
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }
}

/// SHA-256 of a certificate (DER): what join tokens pin.
pub fn certificate_hash(pem: &str) -> Result<[u8; 32], IdentityFault> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|fault| IdentityFault::Bad(format!("not a PEM certificate: {fault}")))?;
    Ok(sha256(&der))
}

/// The host of a `host:port` or of a URL, as it stands in a certificate.
pub fn host_of(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default().to_owned(),
        None => authority.split(':').next().unwrap_or_default().to_owned(),
    }
}

fn aad(cluster: &ClusterId) -> Vec<u8> {
    format!("authority\n{cluster}").into_bytes()
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn subject_name(host: &str) -> Result<SanType, IdentityFault> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let good = !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if !good {
        return Err(IdentityFault::Bad(format!(
            "`{host}` is neither a host name nor an IP address"
        )));
    }
    Ok(SanType::DnsName(host.try_into()?))
}

fn set_life(params: &mut CertificateParams, now: UnixMillis, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(u64::try_from(now.0).unwrap_or_default());
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + life;
}

#[cfg(test)]
mod tests {
    use tollway_shared::ids::{NodeId, Region, ReplicaId};

    use super::*;
    use crate::identity::material;
    use crate::state::samples::NOON;

    #[test]
    fn the_authority_opens_only_with_the_key_and_for_the_cluster_it_was_sealed_for() {
        let cluster = ClusterId::trusted("c1");
        let authority = Authority::create(cluster.clone(), NOON).unwrap();
        let key = Key::new([5; 32]);
        let sealed = authority.sealed_key(&key);
        let pem = authority.certificate_pem().to_owned();
        let open = |cluster: &str, key: &Key| {
            Authority::open(ClusterId::trusted(cluster), &pem, &sealed, key).map(|a| a.cluster)
        };
        assert_eq!(open("c1", &key).unwrap(), cluster);
        assert!(matches!(open("c2", &key), Err(IdentityFault::Seal(_))));
        assert!(matches!(
            open("c1", &Key::new([6; 32])),
            Err(IdentityFault::Seal(_))
        ));
    }

    #[test]
    fn names_in_a_request_are_not_believed() {
        let authority = Authority::create(ClusterId::trusted("c1"), NOON).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut wish = CertificateParams::new(vec!["control.tollway.internal".to_owned()]).unwrap();
        let uri = PeerIdentity::Replica(ReplicaId(1)).uri(authority.cluster());
        wish.subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().unwrap()));
        let request = wish.serialize_request(&key).unwrap().pem().unwrap();
        let node = PeerIdentity::Node {
            region: Region::trusted("eu"),
            id: NodeId::trusted("n1"),
        };
        let pem = authority
            .issue(&request, &node, &["evil.example".into()], NOON, LEAF_LIFE)
            .unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(
            PeerIdentity::of_certificate(&der, authority.cluster()),
            Some(node)
        );
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
    }

    #[test]
    fn a_bad_request_and_bad_names_are_refused() {
        let authority = Authority::create(ClusterId::trusted("c1"), NOON).unwrap();
        let replica = PeerIdentity::Replica(ReplicaId(1));
        let (_, request) = material::request().unwrap();
        let issue =
            |request: &str, hosts: &[String]| authority.issue(request, &replica, hosts, NOON, LEAF_LIFE);
        assert!(issue("nonsense", &[]).is_err());
        assert!(issue(&"x".repeat(REQUEST_BYTES_MAX + 1), &[]).is_err());
        assert!(issue(&request, &["a b".into()]).is_err());
        let many: Vec<String> = (0..NAMES_MAX).map(|n| format!("h{n}")).collect();
        assert!(issue(&request, &many).is_err());
        assert!(issue(&request, &["10.0.0.1".into(), "replica.example".into()]).is_ok());
    }

    #[test]
    fn the_host_is_found_in_addresses_and_urls() {
        for (address, host) in [
            ("https://a.example:7600/x", "a.example"),
            ("10.0.0.1:7601", "10.0.0.1"),
            ("[::1]:7601", "::1"),
            ("host", "host"),
        ] {
            assert_eq!(host_of(address), host);
        }
    }
}
