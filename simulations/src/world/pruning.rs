//! Journals that are pruned, as a node's shell does it: in parts, of which any number of the last ones are replaced.

use protocol::pruning::{Policy, Survey, Verdict};
use protocol::record::Record;

use super::World;

impl World {
    /// Prunes the journal of a host that runs, in parts of so many lines, all but the last of them; replaces only the last
    /// `replaced` of the pruned parts, as if the power had gone then. Returns how many lines are gone.
    ///
    /// # Panics
    /// When a line does not read.
    pub fn prune(&mut self, host: usize, keep_epochs: u32, part: usize, replaced: usize) -> usize {
        let Some(node) = self.node(host) else { return 0 };
        let policy = Policy::of(node, keep_epochs, self.clock(host));
        let journal = &self.hosts[host].journal;
        let read = |line: &[u8]| Record::from_bytes(line).expect("written by this code");
        let mut survey = Survey::new(policy);
        for (position, (_, line)) in (1_u64..).zip(journal.iter()) {
            survey.take(position, &read(line));
            if position.is_multiple_of(part as u64) {
                survey.next_part();
            }
        }
        let sealed = journal.len() / part * part;
        let mut plan = survey.plan(sealed as u64);
        let mut pruned = Vec::new();
        for (number, lines) in journal[..sealed].chunks(part).enumerate() {
            let positions = (number * part) as u64 + 1..;
            let lines: Vec<_> = positions.zip(lines).map(|(at, line)| (at, line, read(&line.1))).collect();
            lines.iter().for_each(|(at, _, record)| plan.read(*at, record));
            let replace = number >= (sealed / part).saturating_sub(replaced);
            for (at, line, record) in lines {
                match plan.verdict(at, &record) {
                    Verdict::Replace(other) if replace => pruned.push((line.0, other.to_bytes())),
                    Verdict::Drop if replace => {}
                    Verdict::Keep | Verdict::Drop | Verdict::Replace(_) => pruned.push(line.clone()),
                }
            }
            plan.next_part();
        }
        let lines = journal.len();
        let journal = &mut self.hosts[host].journal;
        journal.splice(..sealed, pruned);
        lines - journal.len()
    }
}
