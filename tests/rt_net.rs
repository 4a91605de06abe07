//! Sockets: every family, every end of a connection, and every way to end an operation early.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Arena, Drops, Watchdog, errno, executor, poll_once, runtime, until};
use futures::future::join_all;
use ringlog::rt::{self, Address, Fd, IoBuf};
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::mpsc;

/// One conversation over a listener of any family; returns what the acceptor saw as its peer.
async fn converse(listener: &Fd, address: &Address) -> Address {
    let client = rt::socket(address).unwrap();
    let (accepted, connected) = futures::join!(rt::accept(listener), rt::connect(&client, address));
    connected.unwrap();
    let (server, peer) = accepted.unwrap();
    // More than the sockets hold, so that both directions come in pieces.
    let data: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let (sent, received) = futures::join!(rt::send_all(&client, data.clone(), 0), async {
        let mut all = Vec::new();
        while all.len() < data.len() {
            let (result, part) = rt::recv(&server, Vec::with_capacity(30_000), 0).await;
            assert_eq!(result.unwrap(), part.len());
            assert!(!part.is_empty(), "the end came early");
            all.extend(part);
        }
        all
    });
    sent.0.unwrap();
    assert!(received == data, "the bytes came in order");
    let (result, _) = rt::send(&server, "back", 0).await;
    assert_eq!(result.unwrap(), 4);
    let (result, buf) = rt::recv(&client, [0_u8; 4], libc::MSG_WAITALL).await;
    assert_eq!((result.unwrap(), &buf), (4, b"back"));
    // Half closed: the other half still works.
    rt::shutdown(&client, Shutdown::Write).await.unwrap();
    let (result, buf) = rt::recv(&server, Vec::with_capacity(8), 0).await;
    assert_eq!((result.unwrap(), buf.len()), (0, 0));
    rt::send_all(&server, "bye", 0).await.0.unwrap();
    let (result, buf) = rt::recv(&client, [0_u8; 3], libc::MSG_WAITALL).await;
    assert_eq!((result.unwrap(), &buf), (3, b"bye"));
    // Nobody is left to send to: an error, not a signal that ends the process.
    rt::close(client).await.unwrap();
    // The kernel may take a moment to let go of the other end.
    let last = loop {
        let sent = rt::send(&server, "into the void", 0).await.0;
        if sent.is_err() {
            break sent;
        }
    };
    assert!([libc::EPIPE, libc::ECONNRESET].contains(&errno(last)));
    rt::close(server).await.unwrap();
    peer
}

#[test]
fn ipv4_connections_carry_data_both_ways_and_name_their_peers() {
    let _dog = Watchdog::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    let peer = executor().block_on(converse(&Fd::from(listener), &address));
    let Address::Ip(peer) = peer else { panic!("{peer}") };
    assert!(peer.ip().is_loopback() && peer.is_ipv4() && peer.port() != 0, "{peer}");
}

#[test]
fn ipv6_connections_carry_data_both_ways_and_name_their_peers() {
    let _dog = Watchdog::new();
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return; // not on this host
    };
    let address = Address::Ip(listener.local_addr().unwrap());
    let peer = executor().block_on(converse(&Fd::from(listener), &address));
    let Address::Ip(peer) = peer else { panic!("{peer}") };
    assert!(peer.ip().is_loopback() && peer.is_ipv6() && peer.port() != 0, "{peer}");
}

#[test]
fn unix_connections_by_path_carry_data_both_ways() {
    let _dog = Watchdog::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = Fd::from(UnixListener::bind(&path).unwrap());
    let address = Address::from(path.as_path());
    let peer = executor().block_on(converse(&listener, &address));
    assert_eq!(peer, Address::UnixUnnamed, "clients have no name");
}

#[test]
fn unix_connections_by_abstract_name_carry_data_both_ways_and_name_their_peers() {
    let _dog = Watchdog::new();
    let name = format!("ringlog\0rt_net {}", std::process::id()).into_bytes();
    let bound = UnixAddr::from_abstract_name(&name).unwrap();
    let listener = Fd::from(UnixListener::bind_addr(&bound).unwrap());
    let address = Address::UnixAbstract(name);
    executor().block_on(async {
        assert_eq!(converse(&listener, &address).await, Address::UnixUnnamed);
        // A peer that has bound a name of its own.
        let mine = format!("ringlog rt_net peer {}", std::process::id()).into_bytes();
        let client = named_unix_socket(&mine);
        let (accepted, connected) =
            futures::join!(rt::accept(&listener), rt::connect(&client, &address));
        connected.unwrap();
        assert_eq!(accepted.unwrap().1, Address::UnixAbstract(mine));
    });
}

/// An unconnected stream socket bound to an abstract name.
fn named_unix_socket(name: &[u8]) -> Fd {
    let socket = rt::socket(&Address::UnixAbstract(b"any".to_vec())).unwrap();
    let mut raw = libc::sockaddr_un {
        sun_family: libc::sa_family_t::try_from(libc::AF_UNIX).unwrap(),
        sun_path: [0; 108],
    };
    for (to, from) in raw.sun_path[1..].iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    let len = libc::socklen_t::try_from(len).unwrap();
    let fd = socket.as_raw_fd();
    // SAFETY: the address is read before the call returns.
    let bound = unsafe { libc::bind(fd, (&raw const raw).cast(), len) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    socket
}

#[test]
fn refused_connections_and_impossible_addresses_are_errors() {
    let _dog = Watchdog::new();
    executor().block_on(async {
        // A port that is taken, so nobody else gets it, and that nobody listens on.
        let any = Address::Ip("127.0.0.1:0".parse().unwrap());
        let (socket, taken) = (rt::socket(&any).unwrap(), rt::socket(&any).unwrap());
        let address = bind_to_loopback(&taken);
        assert_eq!(errno(rt::connect(&socket, &address).await), libc::ECONNREFUSED);
        let nowhere = Address::Unix("/nowhere/at/all".into());
        let socket = rt::socket(&nowhere).unwrap();
        assert_eq!(errno(rt::connect(&socket, &nowhere).await), libc::ENOENT);
        let invalid = rt::connect(&socket, &Address::UnixUnnamed).await.unwrap_err();
        assert_eq!(invalid.kind(), ErrorKind::InvalidInput);
        assert!(rt::socket(&Address::Unix("x".repeat(200).into())).is_err());
        let file = Fd::from(common::disk_file());
        assert_eq!(errno(rt::accept(&file).await), libc::ENOTSOCK);
        assert_eq!(errno(rt::recv(&file, [0], 0).await.0), libc::ENOTSOCK);
    });
}

fn borrow(fd: &Fd) -> BorrowedFd<'_> {
    // SAFETY: open for as long as `fd` is.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Binds to a free port, without listening, and returns the address.
fn bind_to_loopback(socket: &Fd) -> Address {
    let bound = std::net::TcpStream::from(borrow(socket).try_clone_to_owned().unwrap());
    let mut raw = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap(),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_be_bytes([127, 0, 0, 1]).to_be() },
        sin_zero: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of_val(&raw)).unwrap();
    // SAFETY: the address is read before the call returns.
    let done = unsafe { libc::bind(bound.as_raw_fd(), (&raw mut raw).cast(), len) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    Address::Ip(bound.local_addr().unwrap())
}

#[test]
fn fifty_connections_at_once_on_one_listener() {
    let _dog = Watchdog::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    let listener = Fd::from(listener);
    let executor = executor();
    let echo = executor.spawn(async move {
        let servers = (0..50).map(|_| async {
            let (conn, _) = rt::accept(&listener).await.unwrap();
            let (result, buf) = rt::recv(&conn, [0_u8; 8], libc::MSG_WAITALL).await;
            assert_eq!(result.unwrap(), 8);
            rt::send_all(&conn, buf, 0).await.0.unwrap();
        });
        join_all(servers).await;
    });
    executor.block_on(async {
        let clients = (0_u64..50).map(|n| {
            let address = &address;
            async move {
                let conn = rt::socket(address).unwrap();
                rt::connect(&conn, address).await.unwrap();
                rt::send_all(&conn, n.to_be_bytes(), 0).await.0.unwrap();
                let (result, buf) = rt::recv(&conn, [0_u8; 8], libc::MSG_WAITALL).await;
                assert_eq!((result.unwrap(), u64::from_be_bytes(buf)), (8, n));
            }
        });
        join_all(clients).await;
        echo.await.unwrap();
    });
}

#[test]
fn parts_of_buffers_are_sent_and_received() {
    let _dog = Watchdog::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (ours, theirs) = (Fd::from(ours), Fd::from(theirs));
    executor().block_on(async {
        let (result, buf) = rt::send_all(&ours, b"0123456789".to_vec().part(2..5), 0).await;
        result.unwrap();
        assert_eq!(buf.into_inner(), b"0123456789");
        let (result, buf) = rt::recv(&theirs, b"abcdef".to_vec().part(1..3), 0).await;
        assert_eq!((result.unwrap(), buf.into_inner().as_slice()), (2, b"a23".as_slice()));
        let (result, buf) = rt::recv(&theirs, b"abcdef".to_vec(), libc::MSG_PEEK).await;
        assert_eq!((result.unwrap(), buf.as_slice()), (1, b"4".as_slice()));
        let (result, buf) = rt::recv(&theirs, Vec::with_capacity(0), 0).await;
        // Not 0, which would say that the peer has finished.
        assert_eq!((result.unwrap_err().kind(), buf.len()), (ErrorKind::InvalidInput, 0));
        let (result, buf) = rt::recv(&theirs, [0_u8; 1], 0).await;
        assert_eq!((result.unwrap(), &buf), (1, b"4"), "still there after the look");
    });
}

// ---- ending operations ----------------------------------------------------------------------

/// Otherwise the task that waits for it would wait for ever.
#[test]
fn closing_a_socket_ends_what_waits_on_it_and_the_buffer_comes_back() {
    let _dog = Watchdog::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fd = Fd::from(ours);
    executor().block_on(async {
        let held = fd.clone();
        let waiting = rt::spawn(async move { rt::recv(&held, vec![7_u8; 32], 0).await });
        rt::nop().await.unwrap();
        rt::close(fd).await.unwrap();
        let (result, buf) = waiting.await.unwrap();
        assert_eq!(errno(result), libc::ECANCELED);
        assert_eq!(buf, [7; 32]);
    });
    // And now that the last holder is gone, the other end sees so.
    assert_eq!(std::io::Read::read(&mut &theirs, &mut [0]).unwrap(), 0);
}

#[test]
fn close_by_the_last_holder_closes_and_by_another_one_leaves_it_open() {
    let _dog = Watchdog::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (first, second) = (Fd::from(ours), Fd::from(theirs));
    let clone = first.clone();
    executor().block_on(async {
        rt::close(first).await.unwrap();
        rt::send_all(&clone, "open", 0).await.0.unwrap();
        let (result, _) = rt::recv(&second, [0_u8; 4], 0).await;
        assert_eq!(result.unwrap(), 4);
        rt::close(clone).await.unwrap();
        let (result, _) = rt::recv(&second, [0_u8; 4], 0).await;
        assert_eq!(result.unwrap(), 0);
    });
}

#[test]
fn a_cancelled_operation_says_so_and_gives_its_buffer_back() {
    let _dog = Watchdog::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let fd = Fd::from(ours);
    let listener = Fd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    executor().block_on(async {
        let mut recv = rt::recv(&fd, vec![1_u8; 8], 0);
        let id = recv.start();
        rt::cancel(&id).await.unwrap();
        let (result, buf) = recv.await;
        assert_eq!((errno(result), buf), (libc::ECANCELED, vec![1; 8]));
        assert_eq!(errno(rt::cancel(&id).await), libc::ENOENT, "no longer there");
        let mut accept = rt::accept(&listener);
        rt::cancel(&accept.start()).await.unwrap();
        assert_eq!(errno(accept.await), libc::ECANCELED);
        let mut sleep = rt::timeout_ms(3_600_000);
        rt::cancel(&sleep.start()).await.unwrap();
        assert_eq!(errno(sleep.await), libc::ECANCELED);
        // The cancel may be asked for and dropped before the operation is known to the kernel.
        let mut recv = rt::recv(&fd, vec![2_u8; 8], 0);
        let id = recv.start();
        let mut cancel = Box::pin(rt::cancel(&id));
        assert!(poll_once(&mut cancel).is_pending());
        drop(cancel);
        assert_eq!(errno(recv.await.0), libc::ECANCELED);
        // The socket is as good as before.
        theirs.write_all(b"data").unwrap();
        let (result, buf) = rt::recv(&fd, Vec::with_capacity(8), 0).await;
        assert_eq!((result.unwrap(), buf.as_slice()), (4, b"data".as_slice()));
    });
}

#[test]
fn cancelling_a_descriptor_ends_all_that_waits_on_it_and_nothing_else() {
    let _dog = Watchdog::new();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (other, mut peer) = UnixStream::pair().unwrap();
    let (fd, other) = (Fd::from(ours), Fd::from(other));
    executor().block_on(async {
        assert_eq!(rt::cancel_fd(&fd).await.unwrap(), 0);
        let mut all: Vec<_> = (0..5).map(|_| rt::recv(&fd, [0_u8; 4], 0)).collect();
        let mut spared = rt::recv(&other, [0_u8; 4], 0);
        for recv in &mut all {
            recv.start();
        }
        spared.start();
        assert_eq!(rt::cancel_fd(&fd).await.unwrap(), 5);
        for (result, _) in join_all(all).await {
            assert_eq!(errno(result), libc::ECANCELED);
        }
        peer.write_all(b"mine").unwrap();
        assert_eq!(spared.await.0.unwrap(), 4);
    });
}

#[test]
fn an_operation_can_be_cancelled_from_another_thread_and_from_outside() {
    let _dog = Watchdog::new();
    let runtime = runtime(2);
    for from_inside in [true, false] {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let fd = Fd::from(ours);
        let (send, ids) = mpsc::channel();
        let waiting = runtime.thread(0).schedule(async move {
            let mut recv = rt::recv(&fd, vec![3_u8; 16], 0);
            send.send(recv.start()).unwrap();
            recv.await
        });
        let id = ids.recv().unwrap();
        let cancelled = if from_inside {
            let id = id.clone();
            let task = runtime.thread(1).schedule(async move { rt::cancel(&id).await });
            rt::block_on(task).unwrap()
        } else {
            rt::block_on(rt::cancel(&id))
        };
        cancelled.unwrap();
        let (result, buf) = rt::block_on(waiting).unwrap();
        assert_eq!((errno(result), buf), (libc::ECANCELED, vec![3; 16]));
        assert_eq!(errno(rt::block_on(rt::cancel(&id))), libc::ENOENT);
    }
    runtime.stop().unwrap();
}

#[test]
fn a_dropped_send_or_receive_is_cancelled_and_frees_its_buffer() {
    let _dog = Watchdog::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (fd, drops) = (Fd::from(ours), Drops::default());
    executor().block_on(async {
        let mut recv = rt::recv(&fd, drops.witness(Arena::new(4096)), 0);
        recv.start();
        rt::nop().await.unwrap();
        drop(recv);
        until(|| drops.get() == 1).await;
        // More than the peer, which reads nothing, has room for.
        let mut sent = 0;
        while sent < 16 {
            let mut send = rt::send(&fd, drops.witness(Arena::new(1 << 20)), libc::MSG_WAITALL);
            send.start();
            rt::nop().await.unwrap();
            rt::nop().await.unwrap();
            let pending = poll_once(&mut send).is_pending();
            drop(send);
            sent += 1;
            until(|| drops.get() == 1 + sent).await;
            if pending {
                break;
            }
        }
        assert!(sent < 16, "the socket is full at last");
    });
    drop(theirs);
}

#[test]
fn datagrams_and_sockets_of_the_standard_library_go_through_the_ring() {
    let _dog = Watchdog::new();
    let (first, second) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    first.connect(second.local_addr().unwrap()).unwrap();
    second.connect(first.local_addr().unwrap()).unwrap();
    let (first, second) = (Fd::from(first), Fd::from(second));
    executor().block_on(async {
        rt::send(&first, "one", 0).await.0.unwrap();
        rt::send(&first, "three", 0).await.0.unwrap();
        for want in ["one", "three"] {
            let (result, buf) = rt::recv(&second, Vec::with_capacity(100), 0).await;
            assert_eq!((result.unwrap(), buf), (want.len(), want.as_bytes().to_vec()));
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Fd::from(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (server, _) = rt::accept(&Fd::from(listener)).await.unwrap();
        rt::shutdown(&server, Shutdown::Both).await.unwrap();
        assert_eq!(rt::recv(&client, [0_u8; 1], 0).await.0.unwrap(), 0);
    });
}
