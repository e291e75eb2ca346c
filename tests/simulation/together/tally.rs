//! Counts of all worlds.

/// What happened in all worlds, so that no promise is kept for want of a case.
#[derive(Debug, Default)]
pub struct Tally {
    pub accepted: usize,
    pub refused: usize,
    /// Events that peers read.
    pub heard: usize,
    pub gaps: usize,
    /// Subscribers that were hung up on because they were too slow.
    pub cut: usize,
    /// Those that were told the end by the drain.
    pub drained: usize,
    /// Subscribers that came with an id that their shard had not reached yet.
    pub came_early: usize,
    /// Turns after which the shard slept until it was rung.
    pub slept: usize,
    /// Times that the hub had to wait for a shard.
    pub stalls: usize,
    pub saturated: usize,
    /// Subscribers that were refused because memory was short.
    pub turned_away: usize,
    /// Times that histories were cut for that.
    pub history_cuts: usize,
    /// Sequences that no event has.
    pub left_out: usize,
    /// Gaps that peers were told of because of a hole.
    pub holes: usize,
    /// Peers that got what had left the windows, and how many events that were.
    pub backfills: usize,
    pub backfilled: usize,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        let Tally { accepted, refused, heard, gaps, cut, drained, came_early, .. } = other;
        let Tally { slept, stalls, saturated, turned_away, history_cuts, left_out, holes, .. } = other;
        let Tally { backfills, backfilled, .. } = other;
        for (sum, more) in [
            (&mut self.accepted, accepted),
            (&mut self.refused, refused),
            (&mut self.heard, heard),
            (&mut self.gaps, gaps),
            (&mut self.cut, cut),
            (&mut self.drained, drained),
            (&mut self.came_early, came_early),
            (&mut self.slept, slept),
            (&mut self.stalls, stalls),
            (&mut self.saturated, saturated),
            (&mut self.turned_away, turned_away),
            (&mut self.history_cuts, history_cuts),
            (&mut self.left_out, left_out),
            (&mut self.holes, holes),
            (&mut self.backfills, backfills),
            (&mut self.backfilled, backfilled),
        ] {
            *sum += more;
        }
    }
}
