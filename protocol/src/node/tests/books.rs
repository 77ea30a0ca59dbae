//! An issuer and a member: checkpoints, proofs of accounts, audits, and what happens when the issuer lies.

use super::*;
use crate::books::{BooksMessage, BooksRecord, LeafKind, Leaves};
use crate::ledger::checkpoint::{Checkpoint, TotalsError};
use crate::ledger::equivocation::Equivocation;
use crate::ledger::finding::Finding;
use crate::ledger::issuer::ACCOUNTS_MAX;
use crate::node::replay::replay_issuing;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The issuer and a consumer, connected; what the issuer says of its books passes `lie`.
struct Pair {
    issuer: Told,
    consumer: Told,
    records: Vec<Record>,
    lie: fn(BooksMessage<Checked>) -> BooksMessage<Checked>,
}

impl Pair {
    /// Returns the two after the issuer has given the consumer credits.
    fn met() -> Self {
        let (issuer, consumer) = (node(ISSUER, Some(signer(1))), consumer());
        let mut pair = Self { issuer, consumer, records: Vec::new(), lie: |message| message };
        let hello = pair.issuer.told(START, Input::PeerUp(CONSUMER.id()));
        let answer = pair.consumer.told(START, Input::PeerUp(ISSUER.id()));
        pair.run(START, true, hello);
        pair.run(START, false, answer);
        let grant =
            OwnerCommand::Grant { reference: Digest([1; 32]), account: CONSUMER.account(), amount: 5_000 };
        let out = pair.issuer.told(START, Input::Owner(grant));
        pair.run(START, true, out);
        assert_eq!(pair.consumer.node.balance().cash, 5_000);
        pair
    }

    /// Carries what one side says to the other until both are silent.
    fn run(&mut self, now: Time, by_issuer: bool, out: Vec<Effect>) {
        let mut queue: VecDeque<(bool, Effect)> = out.into_iter().map(|effect| (by_issuer, effect)).collect();
        while let Some((by_issuer, effect)) = queue.pop_front() {
            let said = match effect {
                Effect::Send(_, message) => message,
                Effect::Spread(message) => Message::Books(message),
                Effect::Record(record) | Effect::Note(record) if !by_issuer => {
                    self.records.push(record);
                    continue;
                }
                _ => continue,
            };
            let checked =
                Message::check(&said.to_bytes(), manifest().domain(), Scheme::Strict).expect("signed");
            let checked = match checked {
                Message::Books(books) if by_issuer => Message::Books((self.lie)(books)),
                other => other,
            };
            let out = if by_issuer {
                self.consumer.hears(now, &ISSUER, checked)
            } else {
                self.issuer.hears(now, &CONSUMER, checked)
            };
            queue.extend(out.into_iter().map(|effect| (!by_issuer, effect)));
        }
    }

    /// Lets days pass; the issuer ends each.
    fn days(&mut self, days: u64) -> Time {
        let now = START.plus_ms(days * DAY_MS + 1);
        let out = self.issuer.told(now, Input::Wake);
        self.run(now, true, out);
        let out = self.consumer.told(now, Input::Wake);
        self.run(now, false, out);
        now
    }

    /// Lets time come to both: to the issuer where it is said so.
    fn wake(&mut self, now: Time, order: [bool; 2]) {
        for by_issuer in order {
            let told = if by_issuer { &mut self.issuer } else { &mut self.consumer };
            let out = told.told(now, Input::Wake);
            self.run(now, by_issuer, out);
        }
    }

    fn audit(&mut self, now: Time) -> &AuditView {
        let out = self.consumer.told(now, Input::Owner(OwnerCommand::Audit(None)));
        self.run(now, false, out);
        self.consumer.node.audit_view().expect("asked for")
    }

    fn findings(&self) -> Vec<Finding> {
        self.consumer.node.books_view().findings.to_vec()
    }
}

/// Pages for ever, without a leaf.
fn page_after_page(message: BooksMessage<Checked>) -> BooksMessage<Checked> {
    match message {
        BooksMessage::Page(name, _) if name.kind == LeafKind::Accounts => {
            let mut next = name.after.unwrap_or_default();
            let place = u64::from_be_bytes(next[..8].try_into().expect("eight")) + 1;
            next[..8].copy_from_slice(&place.to_be_bytes());
            BooksMessage::Page(name, Leaves::Accounts(Vec::new(), Some(next)))
        }
        other => other,
    }
}

fn signed(checkpoint: Checkpoint, key: u8) -> Verified<Checkpoint> {
    sign(checkpoint, manifest().domain(), Role::Issuer, &signer(key))
}

#[test]
fn every_day_ends_in_a_checkpoint_in_which_the_member_finds_its_account() {
    let mut pair = Pair::met();
    for day in 1..=3 {
        pair.days(day);
        let books = pair.consumer.node.books_view();
        let newest = books.newest.expect("spread");
        assert_eq!(newest.epoch, Epoch(u32::try_from(day).expect("few") - 1));
        assert_eq!((newest.deposited, newest.check_totals()), (5_000, Ok(())));
        assert_eq!(books.own, Some(OwnLeaf::Proved));
    }
    assert_eq!(pair.findings(), []);
    let kept = pair.consumer.node.checkpoints();
    assert!(kept.windows(2).all(|pair| pair[1].previous == pair[0].id()));
}

#[test]
fn an_issuer_that_was_away_leaves_epochs_out_and_the_chain_holds() {
    let mut pair = Pair::met();
    pair.days(1);
    pair.days(5);

    let epochs: Vec<u32> = pair.consumer.node.checkpoints().iter().map(|c| c.epoch.0).collect();
    assert_eq!((epochs, pair.findings()), (vec![0, 4], vec![]));
}

#[test]
fn a_member_that_was_away_asks_for_what_it_missed() {
    let mut pair = Pair::met();
    pair.days(1);
    for day in 2..=4 {
        pair.issuer.told(START.plus_ms(day * DAY_MS + 1), Input::Wake);
    }
    pair.days(5);

    let epochs: Vec<u32> = pair.consumer.node.checkpoints().iter().map(|c| c.epoch.0).collect();
    assert_eq!((epochs, pair.findings()), (vec![0, 1, 2, 3, 4], vec![]));
}

#[test]
fn books_come_back_from_the_journal_with_the_same_checkpoints() {
    let mut issuer = node(ISSUER, Some(signer(1)));
    let grant =
        OwnerCommand::Grant { reference: Digest([1; 32]), account: CONSUMER.account(), amount: 5_000 };
    let mut out = issuer.told(START, Input::Owner(grant));
    for day in 1..=12 {
        out.extend(issuer.told(START.plus_ms(day * DAY_MS + 1), Input::Wake));
    }
    let records: Vec<Record> = out
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Record(record) => Some(record),
            _ => None,
        })
        .collect();

    let is_checkpoint = |r: &Record| matches!(r, Record::Books(BooksRecord::Checkpoint(_)));
    assert!(records.iter().all(|r| crate::record::is_checkpoint(&r.to_bytes()) == is_checkpoint(r)));

    let config = issuer.node.config.clone();
    let again =
        Node::new(config.clone(), 1, &records, START.plus_ms(12 * DAY_MS + 2)).expect("its own journal");
    assert_eq!(again.checkpoints(), issuer.node.checkpoints());
    assert_eq!(again.books_view().findings, []);

    let mut audit = crate::audit::Audit::new(manifest());
    records.iter().cloned().for_each(|record| audit.check(record));
    assert_eq!(audit.finish().problems, Vec::<String>::new());
    // A deposit that the journal has lost: its checkpoints are of other books.
    let mut lost = crate::audit::Audit::new(manifest());
    let other = Record::Deposited(
        sign(
            records::Deposit {
                reference: Digest([2; 32]),
                account: CONSUMER.account(),
                amount: 4_999,
                epoch: Epoch(0),
                source: records::Source::Budget,
            },
            manifest().domain(),
            Role::Issuer,
            &signer(1),
        )
        .signed(),
    );
    let replaced: Vec<Record> = records
        .iter()
        .map(|r| if matches!(r, Record::Deposited(_)) { other.clone() } else { r.clone() })
        .collect();
    replaced.iter().cloned().for_each(|record| lost.check(record));
    assert!(lost.finish().problems.iter().any(|problem| problem.contains("checkpoint of epoch 0")));
    let node = Node::new(config, 1, &replaced, START.plus_ms(12 * DAY_MS + 2)).expect("read");
    assert!(node.books_view().findings.contains(&Finding::Books { epoch: Epoch(11) }));
}

#[test]
fn a_proof_that_leads_elsewhere_is_found() {
    let mut pair = Pair::met();
    pair.lie = |message| match message {
        BooksMessage::Leaf { checkpoint, proof: Some((mut proof, as_of)) } => {
            proof.leaf.cash += 1;
            BooksMessage::Leaf { checkpoint, proof: Some((proof, as_of)) }
        }
        other => other,
    };
    pair.days(1);

    assert_eq!(pair.findings(), [Finding::Proof { epoch: Epoch(0) }]);
    assert_eq!(pair.consumer.node.books_view().own, Some(OwnLeaf::Wrong));
}

#[test]
fn an_issuer_that_says_it_does_not_know_our_account_is_found() {
    let mut pair = Pair::met();
    pair.lie = |message| match message {
        BooksMessage::Leaf { checkpoint, .. } => BooksMessage::Leaf { checkpoint, proof: None },
        other => other,
    };
    pair.days(1);
    assert_eq!(pair.findings(), [], "told in the same epoch: its clock may be ahead of ours");
    pair.days(2);
    assert_eq!(pair.findings(), [Finding::Missing { epoch: Epoch(1) }]);
}

#[test]
fn a_checkpoint_of_another_balance_than_the_one_told_is_found_and_survives_a_restart() {
    let mut pair = Pair::met();
    let account = CONSUMER.account();
    let now = START.plus_ms(5);
    let as_of = pair.consumer.node.balance().as_of;
    let balance = Balance { cash: 4_000, earned: 0, held: 0, as_of: as_of + 1 };
    let told = Message::AccountState { account, next: 0, head: RecordId::NONE, balance };
    pair.consumer.hears(now, &ISSUER, told);
    pair.lie = |message| match message {
        BooksMessage::Leaf { checkpoint, proof } => {
            BooksMessage::Leaf { checkpoint, proof: proof.map(|(proof, as_of)| (proof, as_of + 1)) }
        }
        other => other,
    };
    pair.days(1);

    let expected = [Finding::Balance { epoch: Epoch(0) }];
    assert_eq!(pair.findings(), expected);
    let config = pair.consumer.node.config.clone();
    let again = Node::new(config, 1, &pair.records, START.plus_ms(DAY_MS + 2)).expect("its own journal");
    assert_eq!(again.books_view().findings, expected);
    let mut audit = crate::audit::Audit::new(manifest());
    pair.records.iter().cloned().for_each(|record| audit.check(record));
    assert!(audit.finish().problems.iter().any(|problem| problem.contains("another balance")));
}

#[test]
fn a_checkpoint_that_does_not_add_up_or_leaves_one_out_is_found() {
    let mut pair = Pair::met();
    let now = pair.days(2);
    let first = pair.consumer.node.checkpoints()[0].clone();

    let lost = signed(
        Checkpoint { epoch: Epoch(2), previous: first.id(), deposited: 6_000, ..Checkpoint::clone(&first) },
        1,
    );
    let later = now.plus_ms(DAY_MS);
    pair.consumer.told(later, Input::Spread(BooksMessage::Checkpoint(lost.clone())));
    let error = TotalsError::Deposits;
    assert_eq!(pair.findings(), [Finding::Totals { epoch: Epoch(2), error }]);

    let skips = Checkpoint { epoch: Epoch(3), previous: first.id(), ..Checkpoint::clone(&first) };
    let skips = BooksMessage::Checkpoint(signed(skips, 1));
    pair.consumer.told(later.plus_ms(DAY_MS), Input::Spread(skips));
    assert!(pair.findings().contains(&Finding::Chain { epoch: Epoch(3) }));
}

#[test]
fn two_checkpoints_of_one_epoch_convict_the_issuer_everywhere() {
    let mut pair = Pair::met();
    let now = pair.days(1);
    let first = pair.consumer.node.checkpoints()[0].clone();
    let second = signed(Checkpoint { deposited: 9_000, ..Checkpoint::clone(&first) }, 1);

    let message = BooksMessage::Checkpoint(second.clone());
    assert!(!pair.consumer.node.passes_on(&message, now), "one of an epoch is passed on");
    let out = pair.consumer.told(now, Input::Spread(message.clone()));
    let books = pair.consumer.node.books_view();
    assert_eq!(books.findings, [Finding::Forked { epoch: Epoch(0) }]);
    let [proof] = books.equivocations else { panic!("one proof, not {:?}", books.equivocations) };
    assert_eq!(proof.culprit(&manifest()), Some(signer(1).public()));
    assert_eq!(books.newest.map(Verified::id), Some(first.id()), "the first one stands");

    let spread = out.iter().find_map(|effect| match effect {
        Effect::Spread(message) => Some(message.clone()),
        _ => None,
    });
    let proof = spread.expect("flooded").verify(manifest().domain(), Scheme::Strict);
    let proof = proof.expect("proves itself");
    let mut other = provider(Price::default());
    assert!(other.node.passes_on(&proof, now));
    other.told(now, Input::Spread(proof.clone()));
    assert_eq!(other.node.books_view().equivocations.len(), 1);
    assert!(!other.node.passes_on(&proof, now), "once");
    assert!(pair.consumer.told(now, Input::Spread(message)).is_empty(), "a second time changes nothing");
}

#[test]
fn a_checkpoint_that_no_issuer_signed_is_an_offence_of_whoever_brings_it() {
    let mut pair = Pair::met();
    let now = pair.days(1);
    let forged = Checkpoint { epoch: Epoch(1), ..Checkpoint::clone(&pair.consumer.node.checkpoints()[0]) };
    let forged = BooksMessage::Checkpoint(signed(forged, 9));
    let later = now.plus_ms(DAY_MS);

    assert!(!pair.consumer.node.passes_on(&forged, later));
    let out = pair.consumer.hears(later, &ISSUER, Message::Books(forged));
    assert_eq!(out, [Effect::Penalise(ISSUER.id(), Offence::WrongSigner)]);
    assert_eq!(pair.findings(), []);
}

#[test]
fn an_audit_computes_the_checkpoint_again_and_says_what_differs() {
    let mut pair = Pair::met();
    let now = pair.days(1);
    let audit = pair.audit(now);
    assert_eq!((audit.state, audit.pages, audit.differences.len()), (AuditState::Done, 2, 0));
    assert_eq!(audit.own.as_ref().map(|own| own.cash), Some(5_000));
    assert_eq!(audit.accounts.map(|root| root.sums.cash), Some(5_000));

    pair.lie = |message| match message {
        BooksMessage::Page(name, Leaves::Accounts(mut leaves, next)) => {
            leaves[0].cash += 7;
            BooksMessage::Page(name, Leaves::Accounts(leaves, next))
        }
        other => other,
    };
    let audit = pair.audit(now);
    assert_eq!(audit.state, AuditState::Done);
    assert_eq!(audit.differences[0], "accounts: cash is 5007 by the leaves and 5000 by the checkpoint");
    assert!(audit.differences[1].starts_with("accounts: the root is "));
    assert_eq!(pair.findings(), [Finding::Log { epoch: Epoch(0) }]);
}

#[test]
fn an_audit_ends_whatever_the_issuer_serves() {
    let mut pair = Pair::met();
    let now = pair.days(1);
    // A page that names itself as the next one, pages for ever without a leaf, and silence.
    pair.lie = |message| match message {
        BooksMessage::Page(name, Leaves::Accounts(leaves, _)) => {
            BooksMessage::Page(name, Leaves::Accounts(leaves, Some([0; 32])))
        }
        other => other,
    };
    assert_eq!(pair.audit(now).state, AuditState::Done);
    pair.lie = page_after_page;
    for round in 0..400 {
        let audit = pair.consumer.node.audit_view().map(|audit| (audit.state, audit.pages));
        if round > 0 && audit.is_some_and(|(state, _)| state != AuditState::Running) {
            break;
        }
        if round == 0 {
            pair.audit(now);
        }
        let later = now.plus_ms((round + 1) * 6_000);
        pair.wake(later, [true, false]);
    }
    let audit = pair.consumer.node.audit_view().expect("asked for");
    assert_eq!((audit.state, audit.differences.len()), (AuditState::Done, 1));
    assert!(audit.pages > 64, "more than one run of pages");

    pair.consumer.told(now, Input::Owner(OwnerCommand::Audit(None)));
    for round in 1..20 {
        pair.consumer.told(now.plus_ms(4_000_000 + round * 6_000), Input::Wake);
    }
    let audit = pair.consumer.node.audit_view().expect("asked for");
    assert_eq!(
        (audit.state, audit.differences[0].as_str()),
        (AuditState::Impossible, "the issuer does not answer")
    );
}

#[test]
fn an_issuer_that_serves_no_more_pages_at_once_is_waited_for() {
    let mut pair = Pair::met();
    let now = pair.days(1);
    pair.lie = page_after_page;
    assert_eq!(pair.audit(now).pages, 64, "a run of pages");
    pair.consumer.node.auditing.as_mut().expect("it goes on").ask_also([PROVIDER.id()]);

    // It asks again before the issuer has begun a new run, and then once more.
    for round in 1..3 {
        pair.wake(now.plus_ms(round * 6_000), [false, true]);
    }
    let audit = pair.consumer.node.audit_view().expect("asked for");
    assert_eq!((audit.distrusted.len(), audit.pages), (0, 128));
}

#[test]
fn an_owner_with_two_steps_in_one_place_is_convicted_and_one_that_was_refused_is_not() {
    let step = |tag: u8, previous: RecordId, sequence: u64| {
        let body = OpBody::Expire(ChannelId([tag; 32]));
        let op = AccountOp { account: CONSUMER.account(), sequence, previous, epoch: Epoch(0), body };
        sign(op, manifest().domain(), Role::Owner, &signer(CONSUMER.1))
    };
    let mut ends = checkpoints::EpochEnds::new();
    let (refused, taken, second) =
        (step(1, RecordId::NONE, 0), step(2, RecordId::NONE, 0), step(3, RecordId::NONE, 0));
    ends.refused(&refused);
    ends.took(&taken);
    let mut node = node(ISSUER, Some(signer(1)));
    node.node.issuing.as_mut().expect("an issuer").ends = ends;

    let mut out = Vec::new();
    node.node.on_second_step(&refused, &mut out);
    node.node.on_second_step(&taken, &mut out);
    node.node.on_second_step(&step(4, taken.id(), 1), &mut out);
    assert_eq!(out, [], "a copy, a step that was refused before, and the next one");

    node.node.on_second_step(&second, &mut out);
    let proof = Equivocation::of_steps(taken, second).expect("one place");
    let recorded = Effect::Record(Record::Books(BooksRecord::Equivocation(proof.signed())));
    assert_eq!(out[0], recorded);
    assert!(matches!(&out[1], Effect::Spread(BooksMessage::Equivocation(_))));
}

#[test]
fn a_second_step_that_reaches_the_issuer_is_noticed() {
    let mut pair = Pair::met();
    let step = |body| {
        let (account, previous) = (CONSUMER.account(), RecordId::NONE);
        let op = AccountOp { account, sequence: 0, previous, epoch: Epoch(0), body };
        sign(op, manifest().domain(), Role::Owner, &signer(CONSUMER.1))
    };
    let grant =
        OwnerCommand::Grant { reference: Digest([2; 32]), account: CONSUMER.account(), amount: 1_000_000 };
    pair.issuer.told(START, Input::Owner(grant));
    let terms = terms(DEAR);
    let open = OpBody::OpenChannel(OpenChannel {
        payee: PROVIDER.id(),
        terms: terms.id(),
        cap: 500_000,
        expires: Epoch(6),
        payer: CONSUMER.id(),
        payer_key: signer(70).public(),
    });
    let poor = step(OpBody::Expire(ChannelId([1; 32])));
    let out = pair.issuer.hears(START, &CONSUMER, Message::Step { op: poor.clone(), terms: None });
    assert_eq!(sent(&out), ["step_refused"]);
    let out = pair.issuer.hears(START, &CONSUMER, Message::Step { op: step(open), terms: Some(terms) });
    assert_eq!(sent(&out), ["stepped"]);
    pair.issuer.hears(START, &CONSUMER, Message::Step { op: poor, terms: None });
    assert_eq!(pair.issuer.node.books_view().equivocations.len(), 0, "refused, so another was signed");

    let second = step(OpBody::Expire(ChannelId([2; 32])));
    pair.issuer.hears(START, &CONSUMER, Message::Step { op: second, terms: None });

    let books = pair.issuer.node.books_view();
    let culprits: Vec<_> = books.equivocations.iter().map(|proof| proof.culprit(&manifest())).collect();
    assert_eq!(culprits, [Some(signer(CONSUMER.1).public())]);
}

/// What an issuer wrote into nearly full books before channels had places in them is followed at the next start.
#[test]
fn a_journal_is_followed_that_filled_the_places_of_whom_open_channels_pay() {
    use crate::ledger::issuer::tests as before;
    use crate::ledger::quorum::Certificate;
    use crate::ledger::records::Vote;

    let (mut books, _) = before::books();
    let domain = books.manifest().domain();
    // Two accounts that the channel will pay are not there yet.
    before::fill(&mut books, ACCOUNTS_MAX - 3);
    let deposit = |tag| sign(before::deposit_for(tag), domain, Role::Issuer, &before::signer(1));
    let op = before::payment_to(&books, AccountId([93; 32]));
    let (sequence, epoch) = (op.sequence, Epoch(0));
    let vote = Vote { op: op.id(), account: op.account, sequence, epoch, settled: None };
    let votes = Vec::from([sign(vote, domain, Role::Issuer, &before::signer(1))]);
    let certificate = Certificate { op, terms: None, votes };
    let membership = Membership { node: CONSUMER.id(), account: AccountId([92; 32]), epoch };
    let membership = sign(membership, domain, Role::Issuer, &before::signer(1));
    let mut issuer = node_of(books.manifest().clone(), ISSUER, Some(before::signer(1))).node;
    let issuing = issuer.issuing.as_mut().expect("an issuer");
    issuing.books = books;

    let full = issuing.books.clone();
    let lines = [
        Record::Deposited(deposit(91).signed()),
        Record::Admitted {
            ticket: Digest([92; 32]),
            membership: membership.signed(),
            deposit: Some(deposit(92).signed()),
        },
        Record::Certified { certificate: certificate.signed(), epoch },
    ];
    for line in lines {
        replay_issuing(issuing, line, domain).expect("it was taken once");
    }
    assert_eq!(issuing.books.balances().count(), ACCOUNTS_MAX);
    assert!(issuing.books.is_conserved());

    // What comes now finds no place.
    let mut books = full;
    assert_eq!(books.deposit(&deposit(91)), Ok(()));
    assert_eq!(books.deposit(&deposit(92)), Err(IssuerError::Full));
    assert_eq!(books.certify(&certificate, epoch), Err(IssuerError::Behind));
}
