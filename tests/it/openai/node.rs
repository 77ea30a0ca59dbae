//! The official Node client of OpenAI.

use tests::{Ground, PACED};

use super::{check_logs, clients, node_of, real_trio, script};
use crate::SHAREMESH;
use crate::embeddings::real_encoder;
use crate::job::real_model;

#[tokio::test]
async fn the_official_node_client_is_served_through_the_mesh() {
    let Some(clients) = clients() else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let words = ["fake", &"ab".repeat(32)];
    let said = script(&ground, node_of(&clients), &trio.consumer, "node/mesh.mjs", &words).await;

    assert_eq!(said.end.done.len(), 14, "{:?}", said.end);
    said.end.check_bill(&trio).await;
    check_logs(&ground, &["Why is the sky blue"]);
}

#[tokio::test]
async fn a_real_model_serves_the_official_node_client() {
    let (Some(clients), Some(model), Some(encoder)) = (clients(), real_model(), real_encoder()) else {
        return;
    };
    let ground = Ground::new(SHAREMESH);
    let (trio, [name, vectors]) = real_trio(&ground, &model, &encoder).await;

    let said = script(&ground, node_of(&clients), &trio.consumer, "node/model.mjs", &[&name, &vectors]).await;

    assert_eq!(said.end.done.len(), 11, "{:?}", said.end);
    assert_eq!(said.end.stopped.len(), 2, "{:?}", said.end);
    said.end.check_bill(&trio).await;
    check_logs(&ground, &["Why is the sky blue", "How is the weather"]);
}
