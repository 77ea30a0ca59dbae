//! The keys and values of a job's tokens, and attention over them.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{DType, Device, Result, Tensor};

use crate::model::ops::{add_scaled, dot, softmax, with_slice};

/// Below so many multiplications, waking other threads costs more than it saves.
const PARALLEL_MIN: usize = 400_000;

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Heads that ask.
    pub(crate) count: usize,
    /// Heads of keys and values, each shared by a group of the former.
    pub(crate) kv_count: usize,
    /// Numbers in a head.
    pub(crate) width: usize,
}

impl Heads {
    pub(crate) fn row_width(self) -> usize {
        self.count * self.width
    }

    pub(crate) fn kv_row_width(self) -> usize {
        self.kv_count * self.width
    }

    /// Numbers in the heads that share a head of keys.
    fn group_width(self) -> usize {
        self.row_width() / self.kv_count
    }
}

/// One layer's keys and values of one job, with room for all its tokens from the beginning.
pub(crate) struct LayerCache {
    heads: Heads,
    capacity: usize,
    length: usize,
    place: Place,
}

enum Place {
    /// By head, then by token: the keys of a head are read in one go. Memory is only taken when it is written.
    Cpu { keys: Vec<f32>, values: Vec<f32> },
    /// The same, as tensors of the shape `(kv_count, capacity, width)`.
    Device { keys: Tensor, values: Tensor },
}

impl LayerCache {
    pub(crate) fn new(heads: Heads, capacity: usize, device: &Device) -> Result<Self> {
        let place = if device.is_cpu() {
            let numbers = heads.kv_row_width() * capacity;
            Place::Cpu { keys: vec![0.0; numbers], values: vec![0.0; numbers] }
        } else {
            Self::on_device(heads, capacity, device)?
        };
        Ok(Self { heads, capacity, length: 0, place })
    }

    fn on_device(heads: Heads, capacity: usize, device: &Device) -> Result<Place> {
        let shape = (heads.kv_count, capacity, heads.width);
        let empty = || Tensor::zeros(shape, DType::F32, device);
        Ok(Place::Device { keys: empty()?, values: empty()? })
    }

    /// Adds the keys and values of the tokens in some rows.
    pub(crate) fn append(&mut self, keys: &Tensor, values: &Tensor, rows: Range<usize>) -> Result<()> {
        let Self { heads, capacity, length, place } = self;
        let count = rows.len();
        if *length + count > *capacity {
            candle_core::bail!("{} tokens do not fit a cache of {capacity}", *length + count)
        }
        match place {
            Place::Cpu { keys: all_keys, values: all_values } => {
                for (new, all) in [(keys, all_keys), (values, all_values)] {
                    with_slice(new, |new| {
                        let new = &new[rows.start * heads.kv_row_width()..rows.end * heads.kv_row_width()];
                        store(new, all, *heads, *capacity, *length);
                    })?;
                }
            }
            Place::Device { keys: all_keys, values: all_values } => {
                for (new, all) in [(keys, all_keys), (values, all_values)] {
                    let new = new.narrow(0, rows.start, count)?;
                    let new = new.reshape((count, heads.kv_count, heads.width))?.transpose(0, 1)?;
                    all.slice_set(&new.contiguous()?, 1, *length)?;
                }
            }
        }
        *length += count;
        Ok(())
    }
}

fn store(new: &[f32], all: &mut [f32], heads: Heads, capacity: usize, length: usize) {
    for (token, row) in new.chunks_exact(heads.kv_row_width()).enumerate() {
        for (head, numbers) in row.chunks_exact(heads.width).enumerate() {
            let begin = (head * capacity + length + token) * heads.width;
            all[begin..begin + heads.width].copy_from_slice(numbers);
        }
    }
}

/// Lets the last `rows.len()` tokens of a cache look at all tokens up to themselves, for several caches.
///
/// `queries` has a row for each of these tokens, and so has the result.
pub(crate) fn attend(queries: &Tensor, caches: &[(&LayerCache, Range<usize>)]) -> Result<Tensor> {
    if queries.device().is_cpu() && caches.iter().all(|(cache, _)| matches!(cache.place, Place::Cpu { .. })) {
        return attend_on_cpu(queries, caches);
    }
    let parts = caches.iter().map(|(cache, rows)| attend_on_device(queries, cache, rows.clone()));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// What one row's heads with the same keys look at.
struct Look<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    result: Mutex<&'a mut [f32]>,
}

fn attend_on_cpu(queries: &Tensor, caches: &[(&LayerCache, Range<usize>)]) -> Result<Tensor> {
    let Some(heads) = caches.first().map(|(cache, _)| cache.heads) else {
        candle_core::bail!("no cache to look at")
    };
    let mut results = vec![0.0; queries.elem_count()];
    with_slice(queries, |queries| {
        let looks = looks(queries, caches, &mut results, heads);
        let multiplications: usize =
            looks.iter().map(|look| 2 * look.keys.len()).sum::<usize>() * (heads.count / heads.kv_count);
        let run = |range: Range<usize>| {
            let mut scores = Vec::new();
            for look in &looks[range] {
                let mut result = look.result.lock().expect("only locked here, once");
                look_at(look, heads.width, &mut scores, &mut result);
            }
        };
        if multiplications < PARALLEL_MIN {
            run(0..looks.len());
        } else {
            candle_core::utils::barrier_pool().execute_chunked(looks.len(), run);
        }
    })?;
    Tensor::from_vec(results, queries.shape(), queries.device())
}

fn looks<'a>(
    queries: &'a [f32],
    caches: &'a [(&LayerCache, Range<usize>)],
    results: &'a mut [f32],
    heads: Heads,
) -> Vec<Look<'a>> {
    let mut results = results.chunks_exact_mut(heads.group_width());
    let mut looks = Vec::with_capacity(results.len());
    for (cache, rows) in caches {
        let Place::Cpu { keys, values } = &cache.place else { unreachable!("the caller has looked") };
        for row in rows.clone() {
            let seen = cache.length - (rows.end - row) + 1;
            let row = &queries[row * heads.row_width()..][..heads.row_width()];
            for (head, queries) in row.chunks_exact(heads.group_width()).enumerate() {
                let begin = head * cache.capacity * heads.width;
                let used = begin..begin + seen * heads.width;
                let result = Mutex::new(results.next().expect("as many results as queries"));
                looks.push(Look { queries, keys: &keys[used.clone()], values: &values[used], result });
            }
        }
    }
    looks
}

/// Computes one look with the widest vectors of this machine; the result does not depend on their width.
fn look_at(look: &Look<'_>, width: usize, scores: &mut Vec<f32>, result: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            #[expect(unsafe_code, reason = "the compiler cannot see the check")]
            // SAFETY: the machine has the feature, as was just checked.
            return unsafe { look_at_with_avx512(look, width, scores, result) };
        }
        if is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "the compiler cannot see the check")]
            // SAFETY: the machine has the feature, as was just checked.
            return unsafe { look_at_with_avx2(look, width, scores, result) };
        }
    }
    look_at_with_any(look, width, scores, result);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn look_at_with_avx512(look: &Look<'_>, width: usize, scores: &mut Vec<f32>, result: &mut [f32]) {
    look_at_with_any(look, width, scores, result);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn look_at_with_avx2(look: &Look<'_>, width: usize, scores: &mut Vec<f32>, result: &mut [f32]) {
    look_at_with_any(look, width, scores, result);
}

#[inline(always)]
fn look_at_with_any(look: &Look<'_>, width: usize, scores: &mut Vec<f32>, result: &mut [f32]) {
    // The widths of nearly all models; a known width stays in registers.
    match width {
        64 => look_at_of_width::<64>(look, scores, result),
        128 => look_at_of_width::<128>(look, scores, result),
        _ => look_at_of_any_width(look, width, scores, result),
    }
}

#[inline(always)]
fn look_at_of_width<const WIDTH: usize>(look: &Look<'_>, scores: &mut Vec<f32>, result: &mut [f32]) {
    let scale = 1.0 / (WIDTH as f32).sqrt();
    let (queries, _) = look.queries.as_chunks::<WIDTH>();
    let (keys, _) = look.keys.as_chunks::<WIDTH>();
    let (values, _) = look.values.as_chunks::<WIDTH>();
    let (results, _) = result.as_chunks_mut::<WIDTH>();
    for (query, result) in queries.iter().zip(results) {
        // The closure is compiled for any machine: for sums this short that was faster than wide vectors.
        scores.clear();
        scores.extend(keys.iter().map(|key| dot(query, key) * scale));
        softmax(scores);
        let mut sum = [0.0; WIDTH];
        for (weight, value) in scores.iter().zip(values) {
            add_scaled(&mut sum, *weight, value);
        }
        *result = sum;
    }
}

#[inline(always)]
fn look_at_of_any_width(look: &Look<'_>, width: usize, scores: &mut Vec<f32>, result: &mut [f32]) {
    let scale = 1.0 / (width as f32).sqrt();
    for (query, result) in look.queries.chunks_exact(width).zip(result.chunks_exact_mut(width)) {
        scores.resize(look.keys.len() / width, 0.0);
        for (score, key) in scores.iter_mut().zip(look.keys.chunks_exact(width)) {
            *score = dot(query, key) * scale;
        }
        softmax(scores);
        for (weight, value) in scores.iter().zip(look.values.chunks_exact(width)) {
            add_scaled(result, *weight, value);
        }
    }
}

fn attend_on_device(queries: &Tensor, cache: &LayerCache, rows: Range<usize>) -> Result<Tensor> {
    let Heads { count, kv_count, width } = cache.heads;
    let Place::Device { keys, values } = &cache.place else {
        candle_core::bail!("the cache is on a CPU, the query is not")
    };
    let keys = keys.narrow(1, 0, cache.length)?;
    let values = values.narrow(1, 0, cache.length)?;
    let queries = queries.narrow(0, rows.start, rows.len())?.reshape((rows.len(), count, width))?;
    // The heads that share keys are neighbours: they become more rows of one product.
    let grouped = (kv_count, count / kv_count * rows.len(), width);
    let queries = queries.transpose(0, 1)?.contiguous()?.reshape(grouped)?;
    let scores = (queries.matmul(&keys.transpose(1, 2)?)? * (1.0 / (width as f64).sqrt()))?;
    let mut scores = scores.reshape((count, rows.len(), cache.length))?;
    if rows.len() > 1 {
        scores = scores.broadcast_add(&mask(rows.len(), cache.length, queries.device())?)?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    let weights = weights.reshape((kv_count, count / kv_count * rows.len(), cache.length))?;
    let result = weights.matmul(&values)?.reshape((count, rows.len(), width))?;
    result.transpose(0, 1)?.reshape((rows.len(), count * width))
}

/// Returns what to add to the scores, so that no token sees a later one.
fn mask(rows: usize, length: usize, device: &Device) -> Result<Tensor> {
    let first = length - rows;
    let hidden = |row: usize, token: usize| if token > first + row { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<_> = (0..rows).flat_map(|row| (0..length).map(move |token| hidden(row, token))).collect();
    Tensor::from_vec(mask, (rows, length), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { count: 6, kv_count: 2, width: 20 };
    const COMMON_HEADS: Heads = Heads { width: 64, ..HEADS };

    fn tensor(rows: usize, width: usize, seed: usize) -> Tensor {
        let numbers = (0..rows * width).map(|at| (((at + seed) * 37 % 101) as f32 - 50.0) / 25.0);
        Tensor::from_vec(numbers.collect::<Vec<_>>(), (rows, width), &Device::Cpu).expect("the shape fits")
    }

    fn cache_on_device(heads: Heads, capacity: usize) -> LayerCache {
        let place = LayerCache::on_device(heads, capacity, &Device::Cpu).expect("fits memory");
        LayerCache { heads, capacity, length: 0, place }
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("on the CPU")
    }

    #[test]
    fn the_loops_agree_with_the_library() {
        for heads in [HEADS, COMMON_HEADS] {
            let mut on_cpu = LayerCache::new(heads, 12, &Device::Cpu).expect("fits memory");
            let mut on_device = cache_on_device(heads, 12);
            for (round, count) in [5, 1, 6].into_iter().enumerate() {
                let queries = tensor(count, heads.row_width(), round);
                let keys = tensor(count, heads.kv_row_width(), 3 * round);
                let values = tensor(count, heads.kv_row_width(), 7 * round);
                let attended = [&mut on_cpu, &mut on_device].map(|cache| {
                    cache.append(&keys, &values, 0..count).expect("room is left");
                    numbers(&attend(&queries, &[(cache, 0..count)]).expect("computes"))
                });
                for (left, right) in attended[0].iter().zip(&attended[1]) {
                    assert!((left - right).abs() < 1e-5, "{left} {right}");
                }
            }
        }
    }

    #[test]
    fn tokens_at_once_one_by_one_or_beside_others_give_the_same_bits() {
        let queries = tensor(4, HEADS.row_width(), 1);
        let keys = tensor(4, HEADS.kv_row_width(), 2);
        let mut whole = LayerCache::new(HEADS, 4, &Device::Cpu).expect("fits memory");
        let mut single = LayerCache::new(HEADS, 9, &Device::Cpu).expect("fits memory");
        whole.append(&keys, &keys, 0..4).expect("room is left");
        let at_once = numbers(&attend(&queries, &[(&whole, 0..4)]).expect("computes"));

        for row in 0..4 {
            single.append(&keys, &keys, row..row + 1).expect("room is left");
            let query = queries.narrow(0, row, 1).expect("a row");
            let alone = numbers(&attend(&query, &[(&single, 0..1)]).expect("computes"));
            assert_eq!(alone, at_once[row * HEADS.row_width()..][..HEADS.row_width()]);
        }
        let last = queries.narrow(0, 3, 1).expect("a row");
        let both = Tensor::cat(&[&queries, &last], 0).expect("same width");
        let beside = numbers(&attend(&both, &[(&whole, 0..4), (&single, 4..5)]).expect("computes"));
        assert_eq!(beside[..at_once.len()], at_once);
        assert_eq!(beside[at_once.len()..], at_once[3 * HEADS.row_width()..]);
    }

    #[test]
    fn a_token_too_many_is_an_error() {
        let keys = tensor(3, HEADS.kv_row_width(), 2);
        for mut cache in
            [LayerCache::new(HEADS, 2, &Device::Cpu).expect("fits memory"), cache_on_device(HEADS, 2)]
        {
            assert!(cache.append(&keys, &keys, 0..3).is_err());
        }
    }
}
