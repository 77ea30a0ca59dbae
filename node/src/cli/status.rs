//! `sharemesh status`, `peers` and `providers`.

use clap::Args;

use super::Global;
use super::terminal::{Terminal, duration, facts, short, table};
use crate::api::views::{NetworkView, PeerView, PriceView, ProviderView, StatusView};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sharemesh providers\n  sharemesh providers --model smollm2-135m --json")]
pub(super) struct ProvidersArgs {
    /// Only those that serve this model
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

pub(super) async fn status(global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let status: StatusView = global.client()?.get("status").await?;
    Ok(terminal.show(&status, describe)?)
}

pub(super) async fn peers(global: &Global, terminal: &Terminal) -> anyhow::Result<()> {
    let peers: Vec<PeerView> = global.client()?.get("peers").await?;
    if peers.is_empty() {
        terminal.message("Nobody is connected. Invite another machine with `sharemesh network ticket`.");
    }
    terminal.show(&peers, |peers| {
        let rows: Vec<_> = peers.iter().map(peer_row).collect();
        if rows.is_empty() {
            return String::new();
        }
        table(&["NODE", "NAME", "TRANSPORT", "RTT", "SINCE", "ADDRESS", "SERVES"], &rows)
    })?;
    Ok(())
}

pub(super) async fn providers(
    arguments: ProvidersArgs,
    global: &Global,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let client = global.client()?;
    let providers: Vec<ProviderView> = match &arguments.model {
        Some(model) => client.get_with("providers", &[("model", model)]).await?,
        None => client.get("providers").await?,
    };
    if providers.is_empty() {
        terminal.message("Nobody serves a model here. Serve one with `sharemesh up --serve NAME`.");
    }
    terminal.show(&providers, |providers| {
        let rows: Vec<_> = providers.iter().map(provider_row).collect();
        if rows.is_empty() {
            return String::new();
        }
        let head = [
            "MODEL",
            "NODE",
            "NAME",
            "CREDITS PER MILLION IN/OUT",
            "LOAD",
            "TOKENS/S",
            "CONTEXT",
            "WHERE",
            "DEVICE",
            "RTT",
        ];
        table(&head, &rows)
    })?;
    Ok(())
}

fn describe(status: &StatusView) -> String {
    let network = &status.network;
    let role = match (network.issuer, network.issuers.len()) {
        (true, 2..) => "you are one of its issuers",
        (true, _) => "you are its issuer",
        (false, _) => "member",
    };
    let dev = if network.dev { ", for development: permits the fake model" } else { "" };
    let ready = if status.ready {
        "yes".to_owned()
    } else {
        format!("no, waiting for {}", status.waiting_for.join(", "))
    };
    let mut text = facts(&[
        ("name", status.name.clone()),
        ("node", status.node.clone()),
        ("account", status.account.clone()),
        ("network", format!("{} {} ({role}{dev})", network.name, short(&network.id))),
        ("issuers", issuers_line(network)),
        ("ready", ready),
        ("up for", duration(status.uptime_ms)),
        ("peers", status.peers.to_string()),
        ("jobs", format!("{} served now, {} submitted now", status.jobs_serving, status.jobs_submitted)),
        ("available", status.available.to_string()),
        ("data", status.data.clone()),
    ]);
    for address in &status.addresses {
        text += &format!("listens on {address}\n");
    }
    for model in &status.models {
        let detail = if model.detail.is_empty() { String::new() } else { format!(" ({})", model.detail) };
        let load = format!("{} of {} slots taken", model.busy, model.slots);
        text += &format!(
            "serves {}: {}{detail}, {load}, {} credits per million\n",
            model.name,
            model.state,
            price(&model.price)
        );
    }
    for issuer in network.issuers.iter().filter(|issuer| !issuer.reachable) {
        text += &format!("issuer {} cannot be reached\n", short(&issuer.node));
    }
    if let Some(epoch) = status.books.checkpoint_epoch {
        text += &format!("checkpoint of epoch {epoch}: own account {}\n", status.books.own_leaf);
    }
    for proof in &status.books.equivocations {
        text += &format!("EQUIVOCATION: {proof}\n");
    }
    for (what, count) in status.offences.iter().filter(|(_, count)| *count > 0) {
        text += &format!("refused from peers: {count} x {what}\n");
    }
    for nearby in &status.nearby {
        text += &format!("nearby: {} at {}; join it with: {}\n", nearby.name, nearby.address, nearby.join);
    }
    for warning in &status.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

/// Says how many issuers can be spoken to, and how many must agree.
pub(super) fn issuers_line(network: &NetworkView) -> String {
    let (issuers, reachable) = (network.issuers.len(), network.issuers_reachable());
    format!("{reachable} of {issuers} reachable, {} must agree", network.quorum)
}

fn peer_row(peer: &PeerView) -> Vec<String> {
    vec![
        short(&peer.node).to_owned(),
        peer.name.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{} {}", peer.transport, peer.direction),
        rtt(peer.rtt_us),
        duration(peer.connected_ms),
        peer.address.clone(),
        if peer.models.is_empty() { "-".to_owned() } else { peer.models.join(", ") },
    ]
}

fn provider_row(provider: &ProviderView) -> Vec<String> {
    let here = if provider.local { " (this node)" } else { "" };
    vec![
        provider.model.clone(),
        short(&provider.node).to_owned(),
        format!("{}{here}", provider.name).trim().to_owned(),
        price(&provider.price),
        format!("{}/{}", provider.busy, provider.slots),
        format!("{}.{}", provider.tokens_per_s_milli / 1000, provider.tokens_per_s_milli % 1000 / 100),
        provider.context.to_string(),
        place(provider),
        format!("{} {}", provider.device, provider.device_name).trim().to_owned(),
        if provider.local { "-".to_owned() } else { rtt(provider.rtt_us) },
    ]
}

/// Says where a provider is and that it is a company, by its own word.
fn place(provider: &ProviderView) -> String {
    let region = provider.region.as_deref().unwrap_or("-");
    if provider.class == "community" { region.to_owned() } else { format!("{region} {}", provider.class) }
}

pub(super) fn price(price: &PriceView) -> String {
    format!("{}/{}", price.input_per_million.credits, price.output_per_million.credits)
}

fn rtt(micros: Option<u64>) -> String {
    micros.map_or_else(|| "?".to_owned(), |micros| format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10))
}
