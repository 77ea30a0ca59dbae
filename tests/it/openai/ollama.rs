//! The official Python client of Ollama.

use tests::{Ground, PACED};

use super::{check_logs, clients, python, real_trio};
use crate::SHAREMESH;
use crate::embeddings::real_encoder;
use crate::job::real_model;

#[tokio::test]
async fn the_official_ollama_client_is_served_through_the_mesh() {
    let Some(clients) = clients() else { return };
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let words = ["fake", &"ab".repeat(32)];
    let said = python(&ground, &clients, &trio, "ollama_dialect.py", &words).await;

    assert_eq!(said.end.done.len(), 8, "{:?}", said.end);
    said.end.check_bill(&trio).await;
    check_logs(&ground, &["Why is the sky blue", "[[say="]);
}

#[tokio::test]
async fn a_real_model_serves_the_official_ollama_client() {
    let (Some(clients), Some(model), Some(encoder)) = (clients(), real_model(), real_encoder()) else {
        return;
    };
    let ground = Ground::new(SHAREMESH);
    let (trio, [name, vectors]) = real_trio(&ground, &model, &encoder).await;

    let said = python(&ground, &clients, &trio, "ollama_model.py", &[&name, &vectors]).await;

    assert_eq!(said.end.done.len(), 7, "{:?}", said.end);
    assert_eq!(said.end.stopped.len(), 1, "{:?}", said.end);
    said.end.check_bill(&trio).await;
    check_logs(&ground, &["Why is the sky blue", "How is the weather"]);
}
