//! Which addresses a provider may have. PURE. Checked after name resolution, so that a name cannot smuggle one in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a connection may be opened. `private_network`: whether loopback and private addresses are allowed; link-local ones
/// (cloud metadata), multicast and the like never are.
pub(super) fn allowed(address: IpAddr, private_network: bool) -> bool {
    match class(address) {
        Class::Public => true,
        Class::Private => private_network,
        Class::Never => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Public,
    Private,
    Never,
}

fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

/// Source: IANA IPv4 special-purpose address registry.
fn class_v4(address: Ipv4Addr) -> Class {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (127 | 10, ..) | (192, 168, _) | (172, 16..=31, _) | (100, 64..=127, _) => Class::Private,
        (0 | 224..=255, ..) | (169, 254, _) => Class::Never,
        (192, 0, 0 | 2) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) => Class::Never,
        _ => Class::Public,
    }
}

/// Source: IANA IPv6 special-purpose address registry. Forms that carry an IPv4 address are what that address is.
fn class_v6(address: Ipv6Addr) -> Class {
    let parts = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        class_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Private,
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        [0xfc00..=0xfdff, ..] => Class::Private,
        [0x2001, 0xdb8, ..] | [0x64, 0xff9b, 1, ..] => Class::Never,
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_need_permission_and_some_are_never_allowed() {
        for (text, public, private) in [
            ("8.8.8.8", true, true),
            ("2606:4700::1111", true, true),
            ("127.0.0.1", false, true),
            ("10.1.2.3", false, true),
            ("172.31.0.1", false, true),
            ("172.32.0.1", true, true),
            ("192.168.1.1", false, true),
            ("100.64.0.1", false, true),
            ("::1", false, true),
            ("fd00::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("64:ff9b::7f00:1", false, true),
            ("2002:7f00:1::", false, true),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
        ] {
            let address = text.parse().unwrap();
            assert_eq!(
                (allowed(address, false), allowed(address, true)),
                (public, private),
                "{text}"
            );
        }
    }
}
