//! Tests with all-MiniLM-L6-v2, whose path is in `SHAREMESH_TEST_ENCODER`, against vectors that others computed.

use crate::direct::Engine;
use crate::frame::{Embed, EmbedInput};
use crate::tiny_model::options;

/// Texts with their number of tokens and some numbers of their vectors: the first eight and the last four. They were
/// computed in double precision by a forward pass of its own in numpy, over the published weights, with the published
/// `tokenizer.json`.
const EXPECTED: [(&str, usize, [f32; 8], [f32; 4]); 5] = [
    (
        "The weather is lovely today.",
        8,
        [0.019196, 0.120085, 0.159598, 0.067066, 0.050075, -0.025919, 0.056468, -0.092858],
        [-0.053168, -0.005363, -0.081095, 0.050213],
    ),
    (
        "It's so sunny outside!",
        9,
        [-0.01869, 0.041519, 0.074315, 0.078433, 0.07557, -0.012508, 0.088357, -0.069789],
        [-0.030061, 0.004866, -0.061904, 0.031875],
    ),
    (
        "He drove to the stadium.",
        8,
        [0.136502, 0.082273, -0.025262, 0.030451, 0.053312, 0.050809, 0.086164, 0.099992],
        [-0.084319, 0.08762, 0.030458, -0.010758],
    ),
    (
        "Füße, naïve café — 东京! 👩\u{200d}🚀 unbelievablynonsensicalword 42",
        23,
        [0.089509, 0.054614, 0.064389, 0.032705, -0.034749, 0.019335, 0.111102, -0.046977],
        [0.049526, 0.096037, -0.041918, -0.054044],
    ),
    (
        "a",
        3,
        [-0.036433, 0.034703, -0.04596, 0.034326, -0.080823, 0.032839, 0.116976, -0.023309],
        [0.111137, 0.046397, -0.004781, 0.094287],
    ),
];

/// Likenesses of the first three texts, as the documentation of sentence-transformers shows them for this model.
const PUBLISHED: [(usize, usize, f32); 3] = [(0, 1, 0.6660), (0, 2, 0.1046), (1, 2, 0.1411)];

#[test]
fn vectors_are_those_that_others_compute() {
    let path = std::env::var_os("SHAREMESH_TEST_ENCODER").map(std::path::PathBuf::from);
    let Some(path) = path else {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "set SHAREMESH_TEST_ENCODER to the model's file"
        );
        println!("skipped: set SHAREMESH_TEST_ENCODER to the file of all-MiniLM-L6-v2");
        return;
    };
    let engine = Engine::load(&options(&path)).expect("the model loads");
    let inputs = EXPECTED.iter().map(|(text, ..)| EmbedInput::Text((*text).to_owned())).collect();

    let (vectors, tokens) = engine.embed(&Embed { inputs, truncate: false }).expect("it computes");

    assert_eq!(tokens, EXPECTED.iter().map(|(_, tokens, ..)| tokens).sum::<usize>());
    for ((text, _, head, tail), vector) in EXPECTED.iter().zip(&vectors) {
        assert_eq!(vector.len(), 384);
        let found = vector[..8].iter().chain(&vector[380..]);
        for (found, expected) in found.zip(head.iter().chain(tail)) {
            assert!((found - expected).abs() < 2e-5, "{text}: {found} and not {expected}");
        }
    }
    for (left, right, expected) in PUBLISHED {
        let likeness: f32 = vectors[left].iter().zip(&vectors[right]).map(|(left, right)| left * right).sum();
        assert!((likeness - expected).abs() < 6e-5, "{likeness} and not {expected}");
    }
}
