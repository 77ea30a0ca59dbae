//! The ports of the API, and how many connections other machines may hold open there.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::caller::Connection;
use crate::exit::Failure;

/// Bounds the connections of other machines together: each costs memory, whether a key is shown or not.
/// Fewer than the requests that are answered at once, of which the owner always has some.
const REMOTE_MAX: usize = 192;

/// Bounds those of one address, or of one network of 64 bits of IPv6, of which one machine has every address, so that
/// it cannot take every place.
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

/// How long a client may take for the head of a request, and leave a connection idle between two.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// How long a client may read nothing of what it is sent.
const UNREAD_MAX: Duration = Duration::from_secs(60);

/// How long a port rests that cannot take connections, as when too many files are open.
const REST: Duration = Duration::from_millis(200);

impl Doors {
    /// Serves until `stop`, and what is being answered then to its end. One request at a time on each connection, so that
    /// connections bound requests.
    pub(super) async fn serve(self, router: Router, stop: CancellationToken) {
        let connections = TaskTracker::new();
        while let Some((visitor, connection)) = stop.run_until_cancelled(self.accept()).await {
            connections.spawn(attend(visitor, connection, router.clone(), stop.clone()));
        }
        connections.close();
        connections.wait().await;
    }

    async fn accept(&self) -> (Visitor, Connection) {
        loop {
            let (stream, there) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "Cannot take a connection to the API");
                    sleep(REST).await;
                    continue;
                }
            };
            let connection = Connection::between(stream.local_addr().ok().map(|here| (there, here)));
            let place = if connection.is_local() {
                None
            } else {
                // One that finds no place is closed at once.
                let Some(place) = Place::take(&self.remote, network_of(there.ip())) else { continue };
                Some(place)
            };
            // Tokens are small and must not wait for each other.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "Cannot send small packets at once");
            }
            return (Visitor { stream, unread: None, _place: place }, connection);
        }
    }
}

/// Answers what comes on one connection.
async fn attend(visitor: Visitor, connection: Connection, router: Router, stop: CancellationToken) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(connection.clone()));
        router.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(visitor), service));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "A connection to the API broke off");
    }
}

/// Returns what connections are counted by.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        ip @ IpAddr::V4(_) => ip,
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

/// A connection to the API, which breaks off if its client reads nothing.
#[derive(Debug)]
struct Visitor {
    stream: TcpStream,
    /// Until when something must have been read, while something waits for that.
    unread: Option<Pin<Box<Sleep>>>,
    _place: Option<Place>,
}

impl Visitor {
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(UNREAD_MAX)));
        unread.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
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
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch(cx, written)
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
        for last in 2..4 {
            held.extend((0..REMOTE_MAX_EACH).map(|_| Place::take(&remote, ip(last)).expect("room")));
        }
        assert!(Place::take(&remote, ip(9)).is_none(), "all are taken");
        drop(held);
        assert!(remote.lock().expect("alone").is_empty());
    }

    #[test]
    fn every_address_of_one_machine_counts_as_one() {
        let network = |ip: &str| network_of(ip.parse().expect("an address"));

        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
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
