//! [`Address`]: where a socket is, as the kernel and as Rust writes it.
//!
//! Invariant: what is read from the kernel's memory is cut to the length that the kernel gave, and
//! an address family that is not known is an error, never a guess.

#![expect(unsafe_code, reason = "reads and writes the kernel's socket addresses")]

use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fmt, io, mem};

/// The address of an IPv4, IPv6 or Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// IPv4 or IPv6.
    Ip(SocketAddr),
    /// A Unix socket in the file system.
    Unix(PathBuf),
    /// A Unix socket by an abstract name, without its leading zero byte.
    UnixAbstract(Vec<u8>),
    /// A Unix socket without a name, as clients are.
    UnixUnnamed,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::UnixAbstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
            Self::UnixUnnamed => f.write_str("unix:(unnamed)"),
        }
    }
}

/// Where the path begins in a `sockaddr_un`.
const UNIX_PATH: usize = mem::offset_of!(libc::sockaddr_un, sun_path);

/// An address in the kernel's layout.
pub(crate) struct Raw {
    pub(crate) storage: libc::sockaddr_storage,
    pub(crate) len: libc::socklen_t,
}

fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(libc::socklen_t::MAX)
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).expect("the constants of libc fit its own type")
}

fn zeroed() -> libc::sockaddr_storage {
    // SAFETY: all its fields are integers, for which zero is valid.
    unsafe { mem::zeroed() }
}

impl Raw {
    /// Room for any address, for the kernel to fill in.
    pub(crate) fn room() -> Self {
        Self { storage: zeroed(), len: socklen(size_of::<libc::sockaddr_storage>()) }
    }

    fn of<T: Copy>(address: T, len: usize) -> Self {
        let mut storage = zeroed();
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        // SAFETY: a storage has the size and alignment for every socket address.
        unsafe { (&raw mut storage).cast::<T>().write(address) };
        Self { storage, len: socklen(len) }
    }

    /// # Safety
    ///
    /// The storage holds a `T`: its family says so, and it is as long.
    unsafe fn get<T: Copy>(&self) -> T {
        // SAFETY: by the contract; a storage is aligned for every socket address.
        unsafe { (&raw const self.storage).cast::<T>().read() }
    }

    pub(crate) fn family(&self) -> i32 {
        i32::from(self.storage.ss_family)
    }

    pub(crate) fn new(address: &Address) -> io::Result<Self> {
        match address {
            Address::Ip(SocketAddr::V4(v4)) => {
                let raw = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: v4.ip().to_bits().to_be() },
                    sin_zero: [0; 8],
                };
                Ok(Self::of(raw, size_of::<libc::sockaddr_in>()))
            }
            Address::Ip(SocketAddr::V6(v6)) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                Ok(Self::of(raw, size_of::<libc::sockaddr_in6>()))
            }
            Address::Unix(path) => Self::unix(path.as_os_str().as_bytes(), false),
            Address::UnixAbstract(name) => Self::unix(name, true),
            Address::UnixUnnamed => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a Unix socket without a name cannot be connected to",
            )),
        }
    }

    fn unix(name: &[u8], is_abstract: bool) -> io::Result<Self> {
        let mut raw = libc::sockaddr_un { sun_family: family(libc::AF_UNIX), sun_path: [0; 108] };
        // A path keeps its closing zero, an abstract name has a leading one.
        if name.is_empty()
            || name.len() >= raw.sun_path.len()
            || (!is_abstract && name.contains(&0))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a Unix socket's name must be 1 to 107 bytes long, a path without zero bytes",
            ));
        }
        let start = usize::from(is_abstract);
        for (to, from) in raw.sun_path[start..].iter_mut().zip(name) {
            *to = libc::c_char::from_le_bytes([*from]); // signed or not, by architecture
        }
        Ok(Self::of(raw, UNIX_PATH + 1 + name.len()))
    }

    pub(crate) fn parse(&self) -> io::Result<Address> {
        let len = self.len as usize;
        match self.family() {
            libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: family and length were checked.
                let raw: libc::sockaddr_in = unsafe { self.get() };
                let ip = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
                Ok(Address::Ip(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into()))
            }
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                // SAFETY: family and length were checked.
                let raw: libc::sockaddr_in6 = unsafe { self.get() };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                let port = u16::from_be(raw.sin6_port);
                let v6 = SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id);
                Ok(Address::Ip(v6.into()))
            }
            libc::AF_UNIX => {
                // SAFETY: the family was checked; what lies beyond `len` is initialised, as zeroes.
                let raw: libc::sockaddr_un = unsafe { self.get() };
                let bytes: Vec<u8> = raw.sun_path.iter().map(|c| c.to_le_bytes()[0]).collect();
                let named = len.saturating_sub(UNIX_PATH).min(bytes.len());
                Ok(match bytes[..named].split_first() {
                    None => Address::UnixUnnamed,
                    Some((0, name)) => Address::UnixAbstract(name.to_vec()),
                    Some(_) => {
                        let end = bytes[..named].iter().position(|&b| b == 0).unwrap_or(named);
                        Address::Unix(OsStr::from_bytes(&bytes[..end]).into())
                    }
                })
            }
            family => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("an address of family {family} and {len} bytes"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_address_survives_the_kernels_layout() {
        let v6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 443, 7, 3);
        for address in [
            Address::Ip("127.0.0.1:80".parse().unwrap()),
            Address::Ip(v6.into()),
            Address::Unix("/tmp/socket".into()),
            Address::Unix("x".repeat(107).into()),
            Address::UnixAbstract(b"name\0with zeroes\0".to_vec()),
        ] {
            assert_eq!(Raw::new(&address).unwrap().parse().unwrap(), address, "{address}");
        }
    }

    #[test]
    fn names_that_do_not_fit_are_refused_and_short_answers_are_not_guessed_at() {
        for address in [
            Address::Unix("x".repeat(108).into()),
            Address::Unix("".into()),
            Address::Unix("a\0b".into()),
            Address::UnixUnnamed,
        ] {
            assert!(Raw::new(&address).is_err(), "{address}");
        }
        let mut raw = Raw::new(&Address::Ip("127.0.0.1:80".parse().unwrap())).unwrap();
        raw.len = 4;
        assert!(raw.parse().is_err());
        let mut unnamed = Raw::new(&Address::Unix("x".into())).unwrap();
        unnamed.len = 2;
        assert_eq!(unnamed.parse().unwrap(), Address::UnixUnnamed);
    }
}
