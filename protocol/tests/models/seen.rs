//! What the models share: states told apart by all that they show, and the search.

use std::fmt::{self, Debug, Write};
use std::hash::{Hash, Hasher};

use stateright::{Checker, HasDiscoveries, Model};

/// Hashes a value by all that its `Debug` shows: the rules' own types have no need of hashes.
pub(crate) fn hash_shown<H: Hasher>(value: &impl Debug, hasher: &mut H) {
    struct Sink<'a, H>(&'a mut H);
    impl<H: Hasher> Write for Sink<'_, H> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    write!(Sink(hasher), "{value:?}").expect("a hasher takes everything");
    0_u8.hash(hasher);
}

/// More states than this are no model that anybody waits for.
const STATES_MAX: usize = 2_000_000;

/// Searches every state of a model; panics with the shortest way to a state where a property does not hold.
#[expect(clippy::print_stdout, reason = "says how much was searched, to whoever runs it with `--nocapture`")]
pub(crate) fn search<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + PartialEq + Clone,
    M::Action: Debug + Clone + PartialEq,
{
    // A fault may open states without end: the first that breaks a promise is enough.
    let checker = model.checker().threads(2).target_state_count(STATES_MAX);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    assert!(checker.state_count() < STATES_MAX, "{name} is too large to be searched whole");
    println!("{name}: {} states, {} deep", checker.unique_state_count(), checker.max_depth());
    for (property, path) in checker.discoveries() {
        let is_example = checker.discovery_classification(property).to_string() == "example";
        assert!(is_example, "{name}: `{property}` does not hold after {:#?}", path.into_actions());
    }
    checker.assert_properties();
}
