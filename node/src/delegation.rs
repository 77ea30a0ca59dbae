//! What an owner gives to another node, as one word of text: the right to act for the account.

use data_encoding::BASE32_NOPAD;
use protocol::encoding::{decode, encode};
use protocol::ids::{DomainId, NodeId};
use protocol::keys::{PublicKey, Scheme};
use protocol::ledger::account::{Lineage, SignedLineage};
use protocol::ledger::records::Device;
use protocol::node::Delegation;
use protocol::signed::{Role, Signed};

use crate::exit::{Failure, FailureKind};

const PREFIX: &str = "sharemeshdevice1";

/// Bounds a delegation: 16 rotations, and the rest.
const BYTES_MAX: usize = 8192;

type Parts = (Signed<Device>, Option<SignedLineage>, NodeId);

/// Writes a delegation.
#[must_use]
pub fn to_text(delegation: &Delegation) -> String {
    let lineage = delegation.lineage.as_ref().map(Lineage::signed);
    let parts: Parts = (delegation.device.signed(), lineage, delegation.wallet);
    format!("{PREFIX}{}", BASE32_NOPAD.encode(&encode(&parts)).to_ascii_lowercase())
}

/// Reads a delegation to `node` in network `domain`.
pub fn from_text(text: &str, node: NodeId, domain: DomainId) -> Result<Delegation, Failure> {
    let damaged = || Failure::usage("this is not a whole delegation: copy it again from `account authorise`");
    let digits = text.trim().strip_prefix(PREFIX).ok_or_else(damaged)?.to_ascii_uppercase();
    let bytes = BASE32_NOPAD.decode(digits.as_bytes()).map_err(|_| damaged())?;
    let (device, lineage, wallet): Parts = decode(&bytes, BYTES_MAX).map_err(|_| damaged())?;
    let foreign = || {
        let what = "the delegation is not for this network, or its owner did not sign it: ask for a new one";
        Failure::new(FailureKind::Forbidden, what)
    };
    let device = device.verify(domain, Scheme::Strict).map_err(|_| foreign())?;
    let lineage = lineage.map(|lineage| lineage.verify(domain, Scheme::Strict)).transpose();
    let lineage = lineage.map_err(|_| foreign())?;
    let key = lineage.as_ref().map_or_else(|| PublicKey::from(device.account), Lineage::key);
    let account = lineage.as_ref().map_or(device.account, Lineage::account);
    if account != device.account || !device.is_signed_by(Role::Owner, key) {
        return Err(foreign());
    }
    if device.node != node {
        let what = format!("the delegation is for node {}, and this is node {node}", device.node);
        return Err(Failure::new(FailureKind::Forbidden, what));
    }
    Ok(Delegation { device, lineage, wallet })
}

#[cfg(test)]
mod tests {
    use protocol::keys::Signer;
    use protocol::ledger::records::{Epoch, Rights};
    use protocol::signed::sign;

    use super::*;

    const DOMAIN: DomainId = DomainId([7; 32]);
    const NODE: NodeId = NodeId([2; 32]);

    fn given(signer: &Signer) -> String {
        let account = Signer::from_seed([1; 32]).public().into();
        let rights = Rights { serve: true, spend: false };
        let device = Device { account, node: NODE, rights, version: 3, expires: Epoch(5) };
        let device = sign(device, DOMAIN, Role::Owner, signer);
        to_text(&Delegation { device, lineage: None, wallet: NodeId([9; 32]) })
    }

    #[test]
    fn a_delegation_is_read_by_the_node_and_in_the_network_it_is_for() {
        let text = given(&Signer::from_seed([1; 32]));

        let read = from_text(&format!("{text}\n"), NODE, DOMAIN).expect("as written");
        assert_eq!((read.device.version, read.wallet), (3, NodeId([9; 32])));
        assert_eq!(
            from_text(&text, NodeId([3; 32]), DOMAIN).map_err(|f| f.kind),
            Err(FailureKind::Forbidden)
        );
        assert_eq!(
            from_text(&text, NODE, DomainId([8; 32])).map_err(|f| f.kind),
            Err(FailureKind::Forbidden)
        );
        assert_eq!(from_text(&text[..40], NODE, DOMAIN).map_err(|f| f.kind), Err(FailureKind::Usage));
        let forged = given(&Signer::from_seed([4; 32]));
        assert_eq!(from_text(&forged, NODE, DOMAIN).map_err(|f| f.kind), Err(FailureKind::Forbidden));
    }
}
