//! Checks the header of a GGUF file within bounds, before the tensor library sees it.
//!
//! The library divides by the file's alignment and allocates by the file's counts, so that a crafted file could
//! end the process or take all memory. A file that passes here has small counts, sane numbers, and every tensor
//! inside the file.

use std::collections::BTreeSet;
use std::io::{self, Read};

/// Bounds the keys; real files have some dozens.
pub const KEYS_MAX: u64 = 4096;
/// Bounds the tensors; the largest mixtures of experts have some thousands.
pub const TENSORS_MAX: u64 = 65_536;
/// Bounds a string; the longest in real files are chat templates of some tens of KiB.
pub const STRING_BYTES_MAX: u64 = 1024 * 1024;
/// Bounds arrays in arrays, each of which is a recursion.
pub const ARRAY_DEPTH_MAX: u32 = 4;
/// Bounds the elements of all arrays together, because the library keeps 32 bytes for each. Vocabularies of
/// 262,144 tokens with their scores, types and merges have about a million.
pub const ARRAY_ELEMENTS_MAX: u64 = 4 * 1024 * 1024;
/// Bounds the whole header; those of the largest vocabularies have about 16 MiB.
pub const HEADER_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Bounds the alignment of tensors: a page.
pub const ALIGNMENT_MAX: u32 = 4096;
/// Bounds a tensor's dimensions: the format's own limit.
pub const DIMENSIONS_MAX: u32 = 4;

/// The alignment of a file that names none.
const ALIGNMENT_DEFAULT: u32 = 32;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It does not begin as a GGUF file.
    #[error("this is no GGUF file: name a file that ends in .gguf")]
    NotGguf,
    /// It is of another version.
    #[error("GGUF version {0} is not supported: convert the file to version 3")]
    Version(u32),
    /// It ends inside its header.
    #[error("the file ends inside its header: it was cut short, fetch it again")]
    CutShort,
    /// It cannot be read.
    #[error("the file cannot be read")]
    Unreadable(#[source] io::Error),
    /// A count or size is over its bound.
    #[error("{what} is {found}, at most {max} is accepted: the file is damaged or hostile, do not use it")]
    TooMuch {
        /// What was counted.
        what: &'static str,
        /// The number in the file.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// A name or a key is not text.
    #[error("a name in the header is not UTF-8: the file is damaged, fetch it again")]
    NotText,
    /// A key or a tensor comes twice.
    #[error("`{0}` comes twice: the file is damaged, fetch it again")]
    Twice(String),
    /// A value is of an unknown type.
    #[error("value type {0} is unknown: the file is damaged or newer than this program")]
    ValueType(u32),
    /// The alignment is none.
    #[error("alignment {0} is not a power of two up to {ALIGNMENT_MAX}: the file is damaged or hostile")]
    Alignment(u64),
    /// The file is one part of several.
    #[error("the file is one of {0} parts: merge them into one file first")]
    Split(u64),
    /// A tensor is of a type that cannot be computed with.
    #[error(
        "tensor `{name}` has type {found}: fetch the model in another quantisation, such as Q4_K_M or Q8_0"
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// The number of its type.
        found: u32,
    },
    /// A tensor's shape is impossible.
    #[error("tensor `{0}` has an impossible shape: the file is damaged or hostile")]
    Shape(String),
    /// A tensor's offset is not aligned.
    #[error("tensor `{0}` is not aligned: the file is damaged or hostile")]
    Misaligned(String),
    /// A tensor's data is not in the file.
    #[error("tensor `{0}` lies outside of the file: it was cut short, fetch it again")]
    Outside(String),
    /// Two tensors share data.
    #[error("tensor `{0}` overlaps another: the file is damaged or hostile")]
    Overlap(String),
}

/// What a header says in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Number of keys.
    pub keys: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of weights in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

/// Reads the header of a file of `file_bytes` and checks all of it; the data is not read.
pub fn check(input: &mut impl Read, file_bytes: u64) -> Result<Checked, GgufError> {
    let mut header = Header { input, position: 0, elements: 0 };
    if header.bytes::<4>().map_err(|_| GgufError::NotGguf)? != *b"GGUF" {
        return Err(GgufError::NotGguf);
    }
    let version = header.u32()?;
    // Version 1 has other widths, and 2 and 3 are the same for little-endian files.
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version(version));
    }
    let tensors = at_most("the number of tensors", header.u64()?, TENSORS_MAX)?;
    let keys = at_most("the number of keys", header.u64()?, KEYS_MAX)?;
    let alignment = header.keys(keys)?;
    let mut places = header.tensors(tensors, alignment)?;
    let data_begin = header.position.next_multiple_of(u64::from(alignment));
    places.check(file_bytes.saturating_sub(data_begin))?;
    Ok(Checked { keys, tensors, parameters: places.parameters, tensor_bytes: places.bytes() })
}

fn at_most(what: &'static str, found: u64, max: u64) -> Result<u64, GgufError> {
    if found > max { Err(GgufError::TooMuch { what, found, max }) } else { Ok(found) }
}

struct Header<'a, R> {
    input: &'a mut R,
    position: u64,
    elements: u64,
}

impl<R: Read> Header<'_, R> {
    fn keys(&mut self, keys: u64) -> Result<u32, GgufError> {
        let mut alignment = ALIGNMENT_DEFAULT;
        let mut names = BTreeSet::new();
        for _ in 0..keys {
            let name = self.name()?;
            let value_type = self.u32()?;
            match name.as_str() {
                "general.alignment" => alignment = self.alignment(value_type)?,
                "split.count" => self.split_count(value_type)?,
                _ => self.skip_value(value_type, 0)?,
            }
            if !names.insert(name.clone()) {
                return Err(GgufError::Twice(name));
            }
        }
        Ok(alignment)
    }

    fn alignment(&mut self, value_type: u32) -> Result<u32, GgufError> {
        let alignment = self.integer(value_type)?.ok_or(GgufError::Alignment(0))?;
        u32::try_from(alignment)
            .ok()
            .filter(|alignment| alignment.is_power_of_two() && *alignment <= ALIGNMENT_MAX)
            .ok_or(GgufError::Alignment(alignment))
    }

    fn split_count(&mut self, value_type: u32) -> Result<(), GgufError> {
        match self.integer(value_type)? {
            Some(parts @ 2..) => Err(GgufError::Split(parts)),
            Some(_) | None => Ok(()),
        }
    }

    /// Reads an unsigned number of any width; other values are skipped. Negative ones come out large.
    fn integer(&mut self, value_type: u32) -> Result<Option<u64>, GgufError> {
        match value_type {
            0 | 1 => self.bytes::<1>().map(|[byte]| Some(u64::from(byte))),
            2 | 3 => self.bytes().map(|bytes| Some(u64::from(u16::from_le_bytes(bytes)))),
            4 | 5 => self.u32().map(|number| Some(u64::from(number))),
            10 | 11 => self.u64().map(Some),
            _ => self.skip_value(value_type, 0).map(|()| None),
        }
    }

    fn skip_value(&mut self, value_type: u32, depth: u32) -> Result<(), GgufError> {
        match value_type {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => {
                let length = at_most("the length of a string", self.u64()?, STRING_BYTES_MAX)?;
                self.skip(length)
            }
            9 => self.skip_array(depth + 1),
            _ => Err(GgufError::ValueType(value_type)),
        }
    }

    fn skip_array(&mut self, depth: u32) -> Result<(), GgufError> {
        at_most("the depth of an array", u64::from(depth), u64::from(ARRAY_DEPTH_MAX))?;
        let element_type = self.u32()?;
        let count = self.u64()?;
        self.elements = self.elements.saturating_add(count);
        at_most("the number of array elements", self.elements, ARRAY_ELEMENTS_MAX)?;
        (0..count).try_for_each(|_| self.skip_value(element_type, depth))
    }

    fn tensors(&mut self, tensors: u64, alignment: u32) -> Result<Places, GgufError> {
        let mut places = Places::default();
        let mut names = BTreeSet::new();
        for _ in 0..tensors {
            let place = self.tensor(alignment, &mut places.parameters)?;
            if !names.insert(place.name.clone()) {
                return Err(GgufError::Twice(place.name));
            }
            places.all.push(place);
        }
        Ok(places)
    }

    fn tensor(&mut self, alignment: u32, parameters: &mut u64) -> Result<Place, GgufError> {
        let name = self.name()?;
        let count = self.u32()?;
        at_most("the number of dimensions", u64::from(count), u64::from(DIMENSIONS_MAX))?;
        let dimensions = (0..count).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        let tensor_type = self.u32()?;
        let begin = self.u64()?;
        let Some((block, block_bytes)) = block_of(tensor_type) else {
            return Err(GgufError::TensorType { name, found: tensor_type });
        };
        let elements =
            dimensions.iter().try_fold(1, |product: u64, dimension| product.checked_mul(*dimension));
        let Some(elements) = elements.filter(|elements| *elements > 0 && !dimensions.is_empty()) else {
            return Err(GgufError::Shape(name));
        };
        // A row is made of whole blocks.
        if dimensions[0] % block != 0 {
            return Err(GgufError::Shape(name));
        }
        if begin % u64::from(alignment) != 0 {
            return Err(GgufError::Misaligned(name));
        }
        let end = (elements / block).checked_mul(block_bytes).and_then(|bytes| begin.checked_add(bytes));
        let Some(end) = end else { return Err(GgufError::Shape(name)) };
        *parameters = parameters.saturating_add(elements);
        Ok(Place { begin, end, name })
    }

    fn name(&mut self) -> Result<String, GgufError> {
        /// The format's own bound for keys.
        const NAME_BYTES_MAX: u64 = 65_535;
        let length = at_most("the length of a name", self.u64()?, NAME_BYTES_MAX)?;
        let mut bytes = vec![0; usize::try_from(length).expect("at most NAME_BYTES_MAX")];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| GgufError::NotText)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.advance(bytes.len() as u64)?;
        self.input.read_exact(bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                GgufError::CutShort
            } else {
                GgufError::Unreadable(error)
            }
        })
    }

    fn skip(&mut self, count: u64) -> Result<(), GgufError> {
        self.advance(count)?;
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink());
        if skipped.map_err(GgufError::Unreadable)? < count {
            return Err(GgufError::CutShort);
        }
        Ok(())
    }

    fn advance(&mut self, count: u64) -> Result<(), GgufError> {
        self.position = self.position.saturating_add(count);
        at_most("the length of the header", self.position, HEADER_BYTES_MAX).map(|_| ())
    }
}

#[derive(Default)]
struct Places {
    all: Vec<Place>,
    parameters: u64,
}

/// Where a tensor's data lies, counted from the beginning of the data.
struct Place {
    begin: u64,
    end: u64,
    name: String,
}

impl Places {
    fn bytes(&self) -> u64 {
        self.all.iter().map(|place| place.end - place.begin).sum()
    }

    fn check(&mut self, data_bytes: u64) -> Result<(), GgufError> {
        self.all.sort_by_key(|place| place.begin);
        if let Some(outside) = self.all.iter().find(|place| place.end > data_bytes) {
            return Err(GgufError::Outside(outside.name.clone()));
        }
        match self.all.windows(2).find(|pair| pair[0].end > pair[1].begin) {
            Some(pair) => Err(GgufError::Overlap(pair[1].name.clone())),
            None => Ok(()),
        }
    }
}

/// Returns the elements and bytes of a block, for the types that the tensor library knows.
fn block_of(tensor_type: u32) -> Option<(u64, u64)> {
    Some(match tensor_type {
        0 => (1, 4),
        1 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes GGUF files, sane ones and others.
    #[derive(Clone)]
    struct File {
        version: u32,
        tensor_count: Option<u64>,
        key_count: Option<u64>,
        keys: Vec<Vec<u8>>,
        tensors: Vec<Vec<u8>>,
        data_bytes: usize,
    }

    impl File {
        fn new() -> Self {
            let keys = vec![key("general.architecture", 8, &string("llama"))];
            let tensors = vec![tensor("token_embd.weight", &[32, 2], 8, 0)];
            Self { version: 3, tensor_count: None, key_count: None, keys, tensors, data_bytes: 68 }
        }

        fn with_key(mut self, name: &str, value_type: u32, value: &[u8]) -> Self {
            self.keys.push(key(name, value_type, value));
            self
        }

        fn with_tensor(mut self, tensor: Vec<u8>) -> Self {
            self.tensors.push(tensor);
            self
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = b"GGUF".to_vec();
            bytes.extend(self.version.to_le_bytes());
            bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
            bytes.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
            bytes.extend(self.keys.concat());
            bytes.extend(self.tensors.concat());
            bytes.resize(bytes.len().next_multiple_of(32) + self.data_bytes, 0);
            bytes
        }

        fn check(&self) -> Result<Checked, GgufError> {
            let bytes = self.bytes();
            check(&mut bytes.as_slice(), bytes.len() as u64)
        }

        fn fails(&self) -> String {
            format!("{:?}", self.check().expect_err("the file is crafted"))
        }
    }

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn key(name: &str, value_type: u32, value: &[u8]) -> Vec<u8> {
        [string(name), value_type.to_le_bytes().to_vec(), value.to_vec()].concat()
    }

    fn tensor(name: &str, dimensions: &[u64], tensor_type: u32, offset: u64) -> Vec<u8> {
        let mut bytes = string(name);
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        bytes.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
        bytes.extend(tensor_type.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    }

    #[test]
    fn a_sane_file_passes() {
        let checked = File::new().with_key("general.alignment", 4, &32_u32.to_le_bytes()).check();
        let expected = Checked { keys: 2, tensors: 1, parameters: 64, tensor_bytes: 68 };
        assert_eq!(checked.expect("sane"), expected);
    }

    #[test]
    fn an_alignment_that_is_no_power_of_two_up_to_a_page_is_refused() {
        for alignment in [0, 3, 8192, u32::MAX] {
            let file = File::new().with_key("general.alignment", 4, &alignment.to_le_bytes());
            assert_eq!(file.fails(), format!("Alignment({alignment})"));
        }
        // Of every width, and of types that are no number.
        assert_eq!(File::new().with_key("general.alignment", 0, &[0]).fails(), "Alignment(0)");
        assert_eq!(File::new().with_key("general.alignment", 5, &(-32_i32).to_le_bytes()).fails(), {
            format!("Alignment({})", (-32_i32) as u32)
        });
        assert_eq!(File::new().with_key("general.alignment", 8, &string("32")).fails(), "Alignment(0)");
    }

    #[test]
    fn counts_without_the_data_are_refused_at_once() {
        for count in [1 << 29, u64::MAX] {
            let keys = File { key_count: Some(count), ..File::new() };
            assert!(keys.fails().contains("number of keys"));
            let tensors = File { tensor_count: Some(count), ..File::new() };
            assert!(tensors.fails().contains("number of tensors"));
        }
        let keys = File { key_count: Some(KEYS_MAX), data_bytes: 0, ..File::new() };
        assert!(keys.check().is_err());
    }

    #[test]
    fn long_strings_and_arrays_are_refused_before_they_are_read() {
        for length in [STRING_BYTES_MAX + 1, 1 << 30, u64::MAX] {
            let long = File::new().with_key("long", 8, &length.to_le_bytes());
            assert!(long.fails().contains("length of a string"));
            let mut name = File::new();
            name.keys.push(length.to_le_bytes().to_vec());
            assert!(name.fails().contains("length of a name"));
            let array = [&8_u32.to_le_bytes()[..], &length.max(1 << 30).to_le_bytes()].concat();
            assert!(File::new().with_key("array", 9, &array).fails().contains("array elements"));
        }
    }

    #[test]
    fn arrays_within_arrays_are_refused_beyond_a_few() {
        let nested = |depth: usize| {
            let level = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
            let innermost = [&0_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat();
            File::new().with_key("nested", 9, &[level.repeat(depth - 1), innermost].concat())
        };
        assert!(nested(4).check().is_ok());
        assert!(nested(5).fails().contains("depth of an array"));
        assert!(nested(65).fails().contains("depth of an array"));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let with = |dimensions: &[u64]| File::new().with_tensor(tensor("t", dimensions, 8, 96)).fails();
        assert!(with(&[32, 1, 1, 1, 1]).contains("number of dimensions"));
        assert_eq!(with(&[u64::MAX, 2]), "Shape(\"t\")");
        assert_eq!(with(&[1 << 32, 1 << 32]), "Shape(\"t\")");
        assert_eq!(with(&[1 << 60, 1 << 3]), "Outside(\"t\")");
        assert_eq!(with(&[33, 32]), "Shape(\"t\")");
        assert_eq!(with(&[32, 0]), "Shape(\"t\")");
        assert_eq!(with(&[]), "Shape(\"t\")");
    }

    #[test]
    fn a_tensor_outside_of_the_file_or_over_another_is_refused() {
        let at = |offset| File::new().with_tensor(tensor("t", &[32, 2], 8, offset)).fails();
        assert_eq!(at(96), "Outside(\"t\")");
        assert_eq!(at(1 << 40), "Outside(\"t\")");
        assert_eq!(at(u64::MAX - 31), "Shape(\"t\")");
        assert_eq!(at(7), "Misaligned(\"t\")");
        assert_eq!(at(32), "Outside(\"t\")");
        let overlapping = File { data_bytes: 1000, ..File::new() };
        assert_eq!(overlapping.with_tensor(tensor("t", &[32, 2], 8, 64)).fails(), "Overlap(\"t\")");
    }

    #[test]
    fn names_that_come_twice_are_refused() {
        let twice = key("general.architecture", 0, &[1]);
        let keys = File { keys: vec![twice.clone(), twice], ..File::new() };
        assert!(keys.fails().contains("Twice"));
        let twice = tensor("token_embd.weight", &[32], 8, 96);
        assert!(File { data_bytes: 1000, ..File::new() }.with_tensor(twice).fails().contains("Twice"));
    }

    #[test]
    fn a_part_of_a_split_model_is_refused_whatever_its_other_names() {
        let file = File::new().with_key("split.name", 8, &string("../../etc/passwd"));
        assert_eq!(file.with_key("split.count", 2, &3_u16.to_le_bytes()).fails(), "Split(3)");
    }

    #[test]
    fn other_files_versions_and_types_are_refused_by_name() {
        assert!(matches!(check(&mut &b"PK\x03\x04"[..], 4), Err(GgufError::NotGguf)));
        assert!(matches!(check(&mut &b""[..], 0), Err(GgufError::NotGguf)));
        assert_eq!(File { version: 1, ..File::new() }.fails(), "Version(1)");
        assert_eq!(File { version: 3_u32.swap_bytes(), ..File::new() }.fails(), "Version(50331648)");
        assert_eq!(File::new().with_key("k", 13, &[]).fails(), "ValueType(13)");
        assert!(File::new().with_tensor(tensor("t", &[256], 19, 96)).fails().contains("TensorType"));
    }

    #[test]
    fn every_cut_of_a_sane_file_is_an_error() {
        let bytes = File::new().bytes();
        for length in 0..bytes.len() {
            assert!(check(&mut &bytes[..length], length as u64).is_err(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = check(&mut [b"GGUF\x03\0\0\0", &bytes[..]].concat().as_slice(), bytes.len() as u64);
        }

        #[test]
        fn a_file_that_passes_does_not_panic_the_library(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let file = File { data_bytes: 4096, ..File::new() };
            let mut bytes = file.with_key("general.alignment", 4, &32_u32.to_le_bytes()).bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if check(&mut bytes.as_slice(), bytes.len() as u64).is_ok() {
                read_with_library(&bytes);
            }
        }
    }

    fn read_with_library(bytes: &[u8]) {
        let mut file = io::Cursor::new(bytes);
        let Ok(content) = candle_core::quantized::gguf_file::Content::read(&mut file) else { return };
        for name in content.tensor_infos.keys() {
            let _ = content.tensor(&mut file, name, &candle_core::Device::Cpu);
        }
    }
}
