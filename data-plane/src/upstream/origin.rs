//! A provider's base URL in its parts. PURE.

use http::uri::PathAndQuery;

/// Where a provider is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The `host` header.
    pub authority: String,
    /// What stands before a dialect's path; without a slash at its end.
    pub prefix: String,
}

impl Origin {
    /// Reads a base URL that passed the snapshot's check. `None` when it is none after all.
    pub fn parse(base_url: &str) -> Option<Self> {
        let url: http::Uri = base_url.parse().ok()?;
        let tls = match url.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = url.authority()?;
        if authority.as_str().contains('@') || url.query().is_some() {
            return None;
        }
        Some(Self {
            tls,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            prefix: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The request target of a dialect's path.
    pub fn target(&self, path: &str) -> Option<PathAndQuery> {
        PathAndQuery::try_from(format!("{}{path}", self.prefix)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_falls_into_its_parts() {
        let origin = Origin::parse("https://api.example.com/v1/").unwrap();
        assert_eq!(
            (origin.tls, origin.port, origin.prefix.as_str()),
            (true, 443, "/v1")
        );
        assert_eq!(origin.target("/messages").unwrap().as_str(), "/v1/messages");
        let origin = Origin::parse("http://[::1]:8000").unwrap();
        assert_eq!((origin.host.as_str(), origin.port), ("::1", 8000));
        assert_eq!(origin.authority, "[::1]:8000");
        for bad in ["ftp://x", "https://", "https://u@x/", "https://x/?q"] {
            assert_eq!(Origin::parse(bad), None, "{bad}");
        }
    }
}
