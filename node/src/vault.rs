//! An account's keys on this machine: derived from a recovery phrase, kept in a file that a passphrase opens.
//!
//! The phrase makes every key that the account will ever have. The file holds only the one in force, and while a rotation
//! is under way the next one: so whoever takes the machine, and even the passphrase, cannot replace the account's key.

use anyhow::Context as _;
use argon2::{Algorithm, Argon2, Params, Version};
use bip39::Mnemonic;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use data_encoding::HEXLOWER;
use protocol::encoding::{decode, encode};
use protocol::ids::AccountId;
use protocol::keys::{PublicKey, Signer};
use protocol::ledger::account::{Inception, promise};
use protocol::node::Owner;
use serde::{Deserialize, Serialize};

use crate::exit::{Failure, FailureKind};
use crate::folder::{Access, DataFolder, FolderError};
use crate::identity::random;

/// The file in the data folder.
pub const FILE: &str = "account.json";

/// Memory of argon2id in KiB, passes, lanes: paid once at each start, and for every guess by whoever stole the file.
const COST: (u32, u32, u32) = (64 * 1024, 3, 1);

/// Bounds what a file may ask for: 1 GiB and 16 passes.
const COST_MAX: (u32, u32, u32) = (1024 * 1024, 16, 4);

/// Least characters of a passphrase: fewer are soon guessed from a stolen file, whatever a guess costs.
const PASSPHRASE_MIN: usize = 8;

/// Arrangement of the file.
const VERSION: u32 = 1;

/// A word of text that is printed nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text that somebody typed, without the line's end.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// A recovery phrase: the account and all its keys.
pub struct Phrase(Mnemonic);

impl Phrase {
    /// Draws a new one, of 24 words.
    #[must_use]
    pub fn draw() -> Self {
        Self(Mnemonic::from_entropy(&random::<32>()).expect("32 bytes make 24 words"))
    }

    /// Reads one that was written down.
    pub fn parse(text: &Secret) -> Result<Self, Failure> {
        let words = text.0.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let phrase = Mnemonic::parse(&words).map_err(|error| {
            Failure::usage(format!("this is not a recovery phrase ({error}): type its 24 words in order"))
        })?;
        match phrase.word_count() {
            24 => Ok(Self(phrase)),
            count => Err(Failure::usage(format!("a recovery phrase has 24 words, and this has {count}"))),
        }
    }

    /// Returns the words, to be shown once.
    #[must_use]
    pub fn words(&self) -> String {
        self.0.to_string()
    }

    /// Returns the seed of the account's key after so many rotations.
    #[must_use]
    pub fn seed(&self, rotations: u32) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("sharemesh v1 account key from a recovery phrase");
        hasher.update(&self.0.to_seed("")).update(&rotations.to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Returns the key after so many rotations, with the promise of the one after it.
    #[must_use]
    pub fn inception(&self, rotations: u32) -> Inception {
        let key = |rotations| Signer::from_seed(self.seed(rotations)).public();
        Inception { key: key(rotations), next: promise(key(rotations.saturating_add(1))) }
    }
}

/// What the file says; secrets in it are sealed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    version: u32,
    account: String,
    first_key: String,
    next_promise: String,
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    nonce: String,
    sealed_keys: String,
}

impl Sealed {
    fn read(text: &str) -> Result<Self, Failure> {
        let sealed: Self = serde_json::from_str(text).map_err(|_| damaged())?;
        if sealed.version != VERSION || sealed.kdf != "argon2id" {
            return Err(Failure::internal(format!("{FILE} was written by a newer version: use that one")));
        }
        Ok(sealed)
    }

    fn inception(&self) -> Result<Inception, Failure> {
        let key = bytes::<32>(&self.first_key).ok_or_else(damaged)?;
        let next = bytes::<32>(&self.next_promise).ok_or_else(damaged)?;
        Ok(Inception { key: PublicKey(key), next: protocol::ids::Digest(next) })
    }
}

fn damaged() -> Failure {
    Failure::internal(format!("{FILE} is damaged: restore it, or use the recovery phrase"))
}

/// Returns whose keys are in the file; that takes no passphrase.
pub fn account_of(text: &str) -> Result<AccountId, Failure> {
    Ok(Sealed::read(text)?.inception()?.account())
}

/// An account's keys, opened.
pub struct Vault {
    inception: Inception,
    /// The key in force, and the next one while a rotation is under way.
    seeds: Vec<[u8; 32]>,
    salt: [u8; 16],
    cost: (u32, u32, u32),
    /// What the passphrase makes: kept, so that a rotation need not ask for it.
    key: [u8; 32],
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Vault of {}", self.inception.account())
    }
}

impl Vault {
    /// Makes the keys of `phrase` as they are after so many rotations, to be opened with `passphrase`.
    pub fn new(phrase: &Phrase, rotations: u32, passphrase: &Secret) -> Result<Self, Failure> {
        if passphrase.0.chars().count() < PASSPHRASE_MIN {
            return Err(Failure::usage(format!(
                "the passphrase is too short: take at least {PASSPHRASE_MIN} characters"
            )));
        }
        let salt = random();
        let key = stretch(passphrase, &salt, COST)?;
        let (inception, seeds) = (phrase.inception(0), vec![phrase.seed(rotations)]);
        Ok(Self { inception, seeds, salt, cost: COST, key })
    }

    /// Opens what is in the file.
    pub fn open(text: &str, passphrase: &Secret) -> Result<Self, Failure> {
        let sealed = Sealed::read(text)?;
        let inception = sealed.inception()?;
        let cost = (sealed.memory_kib, sealed.passes, sealed.lanes);
        if cost.0 > COST_MAX.0 || cost.1 > COST_MAX.1 || cost.2 > COST_MAX.2 {
            return Err(damaged());
        }
        let salt = bytes::<16>(&sealed.salt).ok_or_else(damaged)?;
        let nonce = bytes::<24>(&sealed.nonce).ok_or_else(damaged)?;
        let text = HEXLOWER.decode(sealed.sealed_keys.as_bytes()).map_err(|_| damaged())?;
        let key = stretch(passphrase, &salt, cost)?;
        let payload = Payload { msg: &text, aad: &inception.account().0 };
        let opened = cipher(&key).decrypt(XNonce::from_slice(&nonce), payload).map_err(|_| {
            Failure::new(FailureKind::Forbidden, "the passphrase is not the one of this account's key file")
        })?;
        let seeds: Vec<[u8; 32]> = decode(&opened, 128).map_err(|_| damaged())?;
        if !(1..=2).contains(&seeds.len()) {
            return Err(damaged());
        }
        Ok(Self { inception, seeds, salt, cost, key })
    }

    /// Returns the account.
    #[must_use]
    pub fn account(&self) -> AccountId {
        self.inception.account()
    }

    /// Returns the account's wallet node's rights, in the core's words.
    #[must_use]
    pub fn owner(&self) -> Owner {
        let key = |place: usize| self.seeds.get(place).map(|seed| Signer::from_seed(*seed));
        let first = key(0).expect("opened with at least one");
        Owner::Wallet { inception: self.inception, key: first, next: key(1) }
    }

    /// Keeps the next key beside the one in force, or in its place if that is not held.
    pub fn hold(&mut self, seed: [u8; 32], in_force: PublicKey) {
        self.seeds.retain(|held| Signer::from_seed(*held).public() == in_force && *held != seed);
        self.seeds.push(seed);
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, folder: &DataFolder) -> Result<(), FolderError> {
        let nonce: [u8; 24] = random();
        let payload = Payload { msg: &encode(&self.seeds), aad: &self.account().0 };
        let text = cipher(&self.key)
            .encrypt(XNonce::from_slice(&nonce), payload)
            .expect("a few bytes can always be sealed");
        let sealed = Sealed {
            version: VERSION,
            account: self.account().to_string(),
            first_key: HEXLOWER.encode(&self.inception.key.0),
            next_promise: HEXLOWER.encode(&self.inception.next.0),
            kdf: "argon2id".to_owned(),
            memory_kib: self.cost.0,
            passes: self.cost.1,
            lanes: self.cost.2,
            salt: HEXLOWER.encode(&self.salt),
            nonce: HEXLOWER.encode(&nonce),
            sealed_keys: HEXLOWER.encode(&text),
        };
        let text = serde_json::to_string_pretty(&sealed).expect("plain text");
        folder.write(FILE, text.as_bytes(), Access::Private)
    }
}

/// Reads the account file of a data folder, if there is one.
pub fn read(data: &std::path::Path) -> anyhow::Result<Option<String>> {
    let path = data.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn cipher(key: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.into())
}

fn stretch(passphrase: &Secret, salt: &[u8], cost: (u32, u32, u32)) -> Result<[u8; 32], Failure> {
    let mut key = [0; 32];
    let wrong = |error: argon2::Error| Failure::internal(format!("the passphrase cannot be used: {error}"));
    let params = Params::new(cost.0, cost.1, cost.2, Some(32)).map_err(wrong)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(passphrase.0.as_bytes(), salt, &mut key).map_err(wrong)?;
    Ok(key)
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    /// The phrase of 24 times `abandon`, with its checksum.
    fn known() -> Phrase {
        Phrase::parse(&secret(&format!("{} art\n", "abandon ".repeat(23)))).expect("24 words")
    }

    #[test]
    fn a_phrase_gives_the_same_keys_for_ever() {
        let phrase = known();

        let account = phrase.inception(0).account();
        assert_eq!(
            Phrase::parse(&secret(&phrase.words())).expect("the same").inception(0).account(),
            account
        );
        assert_eq!(promise(phrase.inception(1).key), phrase.inception(0).next);
        assert_ne!(phrase.seed(0), phrase.seed(1));
        assert!(Phrase::draw().words() != Phrase::draw().words());
    }

    #[test]
    fn words_that_are_no_phrase_are_refused_and_not_repeated() {
        let wrong = ["", "abandon abandon", &"abandon ".repeat(24), &"zzzzzz ".repeat(24)];
        for text in wrong {
            let failure = Phrase::parse(&secret(text)).err().expect(text);
            assert_eq!(failure.kind, FailureKind::Usage);
        }
        assert_eq!(format!("{:?}", secret("open sesame")), "Secret(…)");
    }

    #[test]
    fn a_file_opens_with_its_passphrase_only_and_holds_no_key_in_the_clear() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let folder = DataFolder::open(&folder.path().join("node")).expect("new");
        let mut vault = Vault::new(&known(), 0, &secret("correct horse")).expect("long enough");
        vault.hold(known().seed(1), known().inception(0).key);
        vault.write(&folder).expect("writable");
        let text = read(folder.path()).expect("readable").expect("there");

        assert!(!text.contains(&HEXLOWER.encode(&known().seed(0))));
        let opened = Vault::open(&text, &secret("correct horse\n")).expect("its passphrase");
        assert_eq!((opened.account(), opened.seeds.len()), (known().inception(0).account(), 2));
        let wrong = Vault::open(&text, &secret("battery staple")).expect_err("another one");
        assert_eq!(wrong.kind, FailureKind::Forbidden);
        let moved = text.replacen("\"first_key\": \"", "\"first_key\": \"0", 1);
        assert!(Vault::open(&moved, &secret("correct horse")).is_err());
        assert!(Vault::new(&known(), 0, &secret("short")).is_err());
    }
}
