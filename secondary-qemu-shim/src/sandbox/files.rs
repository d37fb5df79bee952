//! The landlock ruleset: nothing may be opened by name, no TCP, no abstract socket, no signal to anybody else.

use std::os::fd::OwnedFd;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, Scope};

/// What this program knows of; an older kernel takes what it has of it.
const KNOWN: ABI = ABI::V6;

/// A ruleset without an exception; none where the kernel has no landlock.
pub(super) fn nothing() -> Result<Option<OwnedFd>, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    Ok(ruleset.into())
}
