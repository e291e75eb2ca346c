//! The scenarios that are part of the program, and the one that is several.

use anyhow::Result;

use super::parse;
use crate::workload::Workload;

/// The scenarios that are part of the program.
pub(super) const BUILT_IN: [(&str, &str); 12] = [
    ("ticker", include_str!("../../scenarios/ticker.toml")),
    ("chat-room", include_str!("../../scenarios/chat-room.toml")),
    ("score-push", include_str!("../../scenarios/score-push.toml")),
    ("chat", include_str!("../../scenarios/chat.toml")),
    ("patterns", include_str!("../../scenarios/patterns.toml")),
    ("conflation", include_str!("../../scenarios/conflation.toml")),
    ("many-topics", include_str!("../../scenarios/many-topics.toml")),
    ("burst", include_str!("../../scenarios/burst.toml")),
    ("reconnect-storm", include_str!("../../scenarios/reconnect-storm.toml")),
    ("storm", include_str!("../../scenarios/storm.toml")),
    ("slow-readers", include_str!("../../scenarios/slow-readers.toml")),
    ("idle-mass", include_str!("../../scenarios/idle-mass.toml")),
];

/// The scenario that is several: all events at once, in several sizes, to several numbers of
/// subscribers.
pub(super) const BULK: &str = "bulk";
/// What `run --list` says of it.
const BULK_ABOUT: &str =
    "Everything at once: 4 KiB to 1 MiB, to 100 and 500 subscribers; everybody gets all, or it fails";
/// Its parts, which have names too.
pub(super) const BULK_PARTS: [(&str, &str); 9] = [
    ("bulk-4k-100", include_str!("../../scenarios/bulk/4k-100.toml")),
    ("bulk-10k-100", include_str!("../../scenarios/bulk/10k-100.toml")),
    ("bulk-10k-posts", include_str!("../../scenarios/bulk/10k-posts.toml")),
    ("bulk-1m-100", include_str!("../../scenarios/bulk/1m-100.toml")),
    ("bulk-4k-500", include_str!("../../scenarios/bulk/4k-500.toml")),
    ("bulk-10k-500", include_str!("../../scenarios/bulk/10k-500.toml")),
    ("bulk-1m-500", include_str!("../../scenarios/bulk/1m-500.toml")),
    ("bulk-total", include_str!("../../scenarios/bulk/total.toml")),
    ("bulk-stalled", include_str!("../../scenarios/bulk/stalled.toml")),
];

/// Every scenario that is part of the program, checked by the tests.
pub fn built_in() -> Result<Vec<Workload>> {
    BUILT_IN.iter().map(|(name, text)| parse(text, &format!("scenario {name}"))).collect()
}

/// What `run --list` tells: name, what it stands for, most connections. Bulk comes last.
pub fn listed() -> Result<Vec<(String, String, usize)>> {
    let mut rows: Vec<_> = built_in()?
        .into_iter()
        .map(|workload| {
            let connections = workload.connections();
            (workload.name, workload.about, connections)
        })
        .collect();
    let parts = BULK_PARTS.iter().map(|(name, text)| parse(text, name)).collect::<Result<Vec<_>>>()?;
    let most = parts.iter().map(Workload::connections).max().unwrap_or(0);
    rows.push((BULK.to_owned(), BULK_ABOUT.to_owned(), most));
    Ok(rows)
}

/// The names with that of a scenario that is several replaced by those of its parts.
pub fn expand(names: &[String]) -> Vec<String> {
    let parts = |name: &String| match name == BULK {
        true => BULK_PARTS.iter().map(|(part, _)| (*part).to_owned()).collect(),
        false => vec![name.clone()],
    };
    names.iter().flat_map(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_stands_for_its_parts_and_is_listed_once() {
        let names = expand(&["ticker".to_owned(), "bulk".to_owned()]);
        assert_eq!((names.len(), names[0].as_str(), names[1].as_str()), (10, "ticker", "bulk-4k-100"));
        let listed = listed().expect("all are well formed");
        assert_eq!(listed.len(), BUILT_IN.len() + 1);
        assert_eq!((listed[12].0.as_str(), listed[12].2), ("bulk", 500));
    }
}
