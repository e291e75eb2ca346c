//! Limits of patterns: how many there are, what they take, and how much of them a turn works on.

/// Patterns of one shard: each new topic is compared with all of them, some ten nanoseconds each
/// where the first segments differ.
pub const PATTERNS_MAX: usize = 1_024;
/// Events in the logs of a shard's patterns, one for each pattern of an event, 32 bytes each.
/// Beyond it patterns give up the oldest ones that no subscriber lacks, and so some of their
/// history.
pub const PATTERN_PLACES_MAX: usize = 1 << 22;
/// What a place in a pattern's log costs: a sequence and an index in a tree.
pub const PATTERN_PLACE_BYTES: usize = 32;
/// Topics that a shard tells of new patterns in one turn, and events of theirs: about a
/// millisecond.
pub const PATTERN_WORK_PER_TURN: usize = 4_096;
/// Ticks for which a pattern stays without a subscriber, so that one that comes back finds it: some
/// seconds.
pub const PATTERN_IDLE_TICKS: u32 = 20;
/// The most events that `last` counts back in a pattern, one by one.
pub const PATTERN_LAST_MAX: usize = 16_384;
