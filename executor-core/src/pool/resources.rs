//! The resources of a pool: their names, and how many tokens there are of each.
//!
//! ```text
//!  builder: names, numbers ─► Resources ── numbers ──────► scheduler: which task may begin
//!  task:    names, numbers ────► resolve ── places, numbers ──┘
//! ```

use crate::task::Need;

/// Maximum number of resources of one pool. The scheduler has a bit for each in a word.
pub(crate) const RESOURCES_MAX: usize = 64;

/// The name of each resource, and the number of its tokens.
#[derive(Debug, Default)]
pub(crate) struct Resources(pub(crate) Box<[(String, u32)]>);

impl Resources {
    /// Returns the number of tokens of each.
    pub(super) fn numbers(&self) -> Box<[u32]> {
        self.0.iter().map(|(_, tokens)| *tokens).collect()
    }

    /// Returns what is to be given to a task that needs these tokens, or what is wrong with them.
    pub(super) fn resolve(&self, needs: &[(Box<str>, u32)]) -> Result<Box<[Need]>, String> {
        let resolve = |(name, tokens): &(Box<str>, u32)| {
            let at = self.0.iter().position(|(own, _)| **own == **name);
            let Some(at) = at else {
                return Err(format!(
                    "needs `{name}`, but its executor has no such resource (`resources`)"
                ));
            };
            let all = self.0[at].1;
            match *tokens {
                0 => Err(format!("needs 0 of `{name}`: a task needs at least one, or nothing")),
                tokens if tokens > all => Err(format!(
                    "needs {tokens} of `{name}`, but its executor has only {all} (`resources`)"
                )),
                tokens => Ok(Need { resource: at as u8, tokens }),
            }
        };
        needs.iter().map(resolve).collect()
    }
}
