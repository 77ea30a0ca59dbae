//! A peer that speaks libp2p well and our message protocol badly.

use std::io;

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use libp2p::{
    StreamProtocol, SwarmBuilder, noise,
    request_response::{self, ProtocolSupport},
    swarm::SwarmEvent,
    tcp, yamux,
};

use super::*;

pub(super) struct Attacker {
    swarm: Swarm<request_response::Behaviour<RawCodec>>,
}

impl Attacker {
    pub(super) fn start(domain: [u8; 32]) -> Self {
        let protocol = Names::new(domain).message_protocol();
        let swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_quic()
            .with_behaviour(|_| {
                request_response::Behaviour::new([(protocol, ProtocolSupport::Outbound)], Default::default())
            })
            .unwrap()
            .build();
        Self { swarm }
    }

    pub(super) fn key(&self) -> PeerKey {
        PeerKey::of(self.swarm.local_peer_id()).unwrap()
    }

    /// Sends bytes as they are, then waits to be aborted.
    pub(super) async fn send_raw(mut self, to: PeerKey, addresses: Vec<Multiaddr>, bytes: Vec<u8>) {
        self.swarm.behaviour_mut().send_request_with_addresses(&to.peer_id(), bytes, addresses);
        loop {
            let _: SwarmEvent<_> = self.swarm.select_next_some().await;
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct RawCodec;

impl request_response::Codec for RawCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = ();

    async fn read_request<T>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<()>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ok(())
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, _: &mut T, _: ()) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        Ok(())
    }
}
