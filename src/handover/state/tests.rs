use std::io::Cursor;

use super::*;

const EPOCH: Epoch = Epoch(10_000_000_000_000_000_000);

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

/// A state with something in each of its parts.
fn state() -> State {
    let known = |name: &str, sequence, evicted| TopicState {
        name: topic(name),
        remembered: true,
        sequence,
        id: None,
        events: 9,
        bytes: 300,
        evicted,
        cut: None,
        hole: 0,
    };
    let cut = Some(PastCut { sequence: 2, intake: Stamp(20), published: 500 });
    let topics = vec![
        TopicState { id: CustomId::new("order 7").ok(), ..known("news/ä", 6, 0) },
        TopicState { cut, hole: 8, ..known("t", 7, 2) },
        TopicState { remembered: false, ..known("values", 5, 5) },
    ];
    let event = |topic: &Topic, data: Data| Event {
        topic: topic.clone(),
        data,
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    };
    let past = |sequence, event| PastEvent { sequence, intake: Stamp(sequence * 10), unix_ms: 5, event };
    let whole = Event {
        name: EventName::new("tick").ok(),
        id: CustomId::new("order 7").ok(),
        retry_ms: Some(0),
        key: Key::new("räume/1").ok(),
        ..event(&topics[0].name, Data::string("line\nline".into()))
    };
    let events = vec![
        past(3, event(&topics[1].name, Data::binary(Bytes::from_static(&[0xff, 0])))),
        past(5, event(&topics[2].name, Data::string("value".into()))),
        past(6, whole),
        past(7, event(&topics[1].name, Data::string(String::new()))),
    ];
    let key = IdempotencyKey::new("k").expect("a key");
    let keys = vec![PastKey { topic: topic("t"), key, said: 3, sequence: 7, since: Stamp(70) }];
    State {
        epoch: EPOCH,
        sequence: 8,
        hole: 2,
        topics,
        events,
        forgotten: vec![(topic("old"), 1)],
        dropped: 1,
        keys,
    }
}

fn written(state: &State) -> Vec<u8> {
    let events = state.events.iter();
    let events = events.map(|PastEvent { sequence, intake, unix_ms, event }| EventView {
        sequence: *sequence,
        intake: *intake,
        unix_ms: *unix_ms,
        event,
    });
    let mut bytes = Vec::new();
    state.write(events, &mut bytes).expect("memory takes it");
    bytes
}

fn read(bytes: &[u8]) -> Result<State, StateError> {
    State::read(Cursor::new(bytes))
}

/// The same bytes with the checksum that is right for them.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - CHECKSUM_BYTES as usize);
    let sum = Sha1::digest(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    let state = state();
    assert_eq!(read(&written(&state)).expect("a state"), state);
    let empty = State {
        sequence: 0,
        hole: 0,
        dropped: 0,
        topics: vec![],
        events: vec![],
        forgotten: vec![],
        keys: vec![],
        ..state
    };
    assert_eq!(read(&written(&empty)).expect("a state"), empty);
}

#[test]
fn a_state_that_is_cut_off_anywhere_is_refused() {
    let bytes = written(&state());
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(read(&longer), Err(StateError::Checksum)));
}

#[test]
fn a_state_with_any_bit_changed_is_refused() {
    let mut bytes = written(&state());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(read(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_state_of_another_format_is_refused_by_the_names_of_both() {
    let mut bytes = written(&state());
    bytes[MAGIC.len()] = 9;
    for bytes in [bytes.clone(), sealed(bytes)] {
        let error = read(&bytes).expect_err("another format").to_string();
        assert!(error.contains("format 9") && error.contains(&format!("format {FORMAT}")), "{error}");
    }
    assert!(matches!(read(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n"), Err(StateError::Foreign)));
}

/// Even with the right checksum what cannot be is refused, and no length is taken at its word.
#[test]
fn a_state_that_says_what_cannot_be_is_refused() {
    let state = state();
    let with = |change: fn(&mut State)| {
        let mut changed = state.clone();
        change(&mut changed);
        read(&written(&changed)).expect_err("it cannot be").to_string()
    };
    assert!(with(|state| state.epoch = Epoch(7)).contains("epoch"));
    assert!(with(|state| state.sequence = 6).contains("never given"));
    assert!(with(|state| state.dropped = 9).contains("never given"));
    assert!(with(|state| state.events.swap(0, 1)).contains("do not rise"));
    assert!(with(|state| state.topics[1].evicted = 9).contains("never given"));
    assert!(with(|state| state.topics.push(state.topics[0].clone())).contains("twice"));
}

/// Bytes that are changed at random, under a checksum that is right, are read or refused: nothing
/// panics, and nothing takes more memory than there are bytes.
#[test]
fn no_change_of_bytes_makes_the_reader_panic() {
    let bytes = written(&state());
    let mut dice = crate::egress::sim::Dice::new(17);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut changed = bytes.clone();
        for _ in 0..=dice.roll(4) {
            let at = dice.roll(changed.len() as u64) as usize;
            changed[at] = [0, 1, 0x7f, 0x80, 0xff, dice.roll(256) as u8][dice.roll(6) as usize];
        }
        if dice.chance(1, 8) {
            changed.truncate(24 + dice.roll(bytes.len() as u64 - 24) as usize);
        }
        match read(&sealed(changed)) {
            Ok(state) => {
                taken += 1;
                assert_eq!(read(&written(&state)).expect("a state that was taken"), state);
            }
            Err(_) => refused += 1,
        }
    }
    assert!(taken > 1_000 && refused > 1_000, "{taken} taken, {refused} refused");
}
