//! The ports of the API, and how many connections other machines may hold open there.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::caller::Connection;
use crate::exit::Failure;

/// Bounds the connections of other machines together: each costs memory, whether a key is shown or not.
const REMOTE_MAX: usize = 256;

/// Bounds those of one machine, so that it cannot take every place.
const REMOTE_MAX_EACH: usize = 64;

/// One port of the API; each connection knows its two ends.
#[derive(Debug)]
pub(super) struct Doors {
    listener: TcpListener,
    remote: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// What the API listens on, and where programs on this machine reach it.
#[derive(Debug)]
pub struct Listening {
    pub(super) doors: Vec<Doors>,
    /// On this machine.
    pub local: SocketAddr,
}

/// Takes the API's port; an error says what to do if another program has it. Where it is that of one address of another
/// kind, the owner's programs find the API at the same port of this machine's own.
pub async fn listen(address: SocketAddr) -> Result<Listening, Failure> {
    let remote = Arc::default();
    let first = bind(address).await?;
    let bound =
        first.local_addr().map_err(|error| Failure::internal(format!("the API has no address: {error}")))?;
    let local = local_part(bound);
    let mut doors = vec![Doors { listener: first, remote: Arc::clone(&remote) }];
    if !address.ip().is_loopback() && !address.ip().is_unspecified() {
        doors.push(Doors { listener: bind(local).await?, remote });
    }
    Ok(Listening { doors, local })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = if error.kind() == io::ErrorKind::AddrInUse {
            format!(
                "port {} is taken: another node may be running (see `sharemesh status`); choose another port with --api 127.0.0.1:PORT",
                address.port()
            )
        } else {
            format!("cannot listen on {address} for the API ({error}): choose another with --api")
        };
        Failure::internal(message)
    })
}

/// Returns where programs on this machine reach an API that listens at `address`.
#[must_use]
pub fn local_part(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_loopback() => address,
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], address.port())),
        IpAddr::V4(_) | IpAddr::V6(_) => SocketAddr::from(([127, 0, 0, 1], address.port())),
    }
}

impl Listener for Doors {
    type Io = Visitor;
    type Addr = Connection;

    async fn accept(&mut self) -> (Visitor, Connection) {
        loop {
            let (stream, there) = Listener::accept(&mut self.listener).await;
            let connection = Connection::between(stream.local_addr().ok().map(|here| (there, here)));
            let place = if connection.is_local() {
                None
            } else {
                // One that finds no place is closed at once.
                let Some(place) = Place::take(&self.remote, there.ip().to_canonical()) else { continue };
                Some(place)
            };
            // Tokens are small and must not wait for each other.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "Cannot send small packets at once");
            }
            return (Visitor { stream, _place: place }, connection);
        }
    }

    fn local_addr(&self) -> io::Result<Connection> {
        TcpListener::local_addr(&self.listener).map(|here| Connection::between(Some((here, here))))
    }
}

/// The place of a connection from another machine, given back with it.
#[derive(Debug)]
struct Place {
    remote: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    ip: IpAddr,
}

impl Place {
    fn take(remote: &Arc<Mutex<BTreeMap<IpAddr, usize>>>, ip: IpAddr) -> Option<Self> {
        let mut open = remote.lock().expect("nothing panics while it holds the counts");
        let own = open.get(&ip).copied().unwrap_or(0);
        if open.values().sum::<usize>() >= REMOTE_MAX || own >= REMOTE_MAX_EACH {
            return None;
        }
        open.insert(ip, own + 1);
        Some(Self { remote: Arc::clone(remote), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.remote.lock().expect("nothing panics while it holds the counts");
        match open.get_mut(&self.ip) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => _ = open.remove(&self.ip),
        }
    }
}

/// A connection to the API.
#[derive(Debug)]
pub(super) struct Visitor {
    stream: TcpStream,
    _place: Option<Place>,
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_cannot_take_every_place_and_places_are_given_back() {
        let remote = Arc::default();
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let mut held: Vec<Place> =
            (0..REMOTE_MAX_EACH).map(|_| Place::take(&remote, ip(1)).expect("room")).collect();

        assert!(Place::take(&remote, ip(1)).is_none());
        for last in 2..5 {
            held.extend((0..REMOTE_MAX_EACH).map(|_| Place::take(&remote, ip(last)).expect("room")));
        }
        assert!(Place::take(&remote, ip(9)).is_none(), "all are taken");
        drop(held);
        assert!(remote.lock().expect("alone").is_empty());
    }

    #[test]
    fn the_owner_reaches_the_api_on_this_machine_wherever_it_listens() {
        for (listens, local) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:1", "[::1]:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("192.0.2.1:1", "127.0.0.1:1"),
        ] {
            assert_eq!(local_part(listens.parse().expect("an address")), local.parse().expect("an address"));
        }
    }
}
