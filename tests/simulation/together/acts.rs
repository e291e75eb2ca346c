//! What a world comes to after the dice have had their way with it: it settles, a topic runs out of
//! room, a subscriber is cut, the hub drains.

use super::*;

impl Together {
    /// A peer that stayed has all events of its topics, save those told as lost.
    pub fn check_complete(&self, peer: &Peer) {
        let has = begins_after(peer);
        for topic in &peer.topics {
            let told = peer.lost.get(topic).copied().unwrap_or(0);
            let newest = newest_of(&[*topic], &self.log, self.log.len() as u64).unwrap_or(0);
            assert!(newest <= has.max(told), "a peer lacks {newest} of topic {topic}: {peer:?}");
        }
    }

    /// Every publisher was told what became of its events.
    fn check_fates(&self) {
        for (at, tried) in self.publishers.tried.iter().enumerate() {
            let number = at as u64 + 1;
            let sequence = self.sequences.get(&number).copied();
            match tried.fate {
                Fate::Accepted(Some(told)) => assert_eq!(sequence, Some(told), "event {number}"),
                Fate::Accepted(None) => {
                    assert!(sequence.is_some(), "event {number} was accepted and is lost")
                }
                Fate::Refused => assert_eq!(sequence, None, "event {number} was refused"),
                Fate::Unsure => assert!(self.is_remote, "event {number} has an outcome"),
                Fate::Unknown => panic!("nobody knows what became of event {number}"),
            }
        }
    }

    /// Memory is short for some seconds, more or less, while publishers go on.
    pub async fn squeeze(&mut self) {
        for _ in 0..12 {
            let share = pick(&mut self.dice, &[0, 60, 89, 89, 95, 98]);
            self.plant(share);
            for _ in 0..6 {
                self.publish();
                self.step().await;
            }
            // All turn after that, and answer pings.
            for ms in [TICK_MS, 0, 0] {
                self.round(ms).await;
            }
        }
    }

    /// Everybody reads, streams end, and then nobody lacks anything.
    pub async fn settle(&mut self) {
        self.publishers.close_all();
        self.stall_all(false);
        self.plant(0);
        let mut rest = 0;
        for _ in 0..20_000 {
            rest = if self.round(1).await { rest + 1 } else { 0 };
            if rest > 30 {
                break;
            }
        }
        assert!(rest > 30, "hub and shards come to rest: {} wait", self.publishers.waiting);
        for _ in 0..24 {
            self.round(TICK_MS / 4).await;
        }
        self.check_fates();
        assert!(self.memory.pressure() <= Pressure::Histories, "nobody is refused any more");
        let histories: Vec<Vec<u64>> =
            self.seats.iter().map(|seat| seat.shard.histories().collect()).collect();
        assert!(histories.windows(2).all(|two| two[0] == two[1]), "all shards have the same: {histories:?}");
        for seat in &self.seats {
            assert_eq!(seat.shard.metrics().events, count_of(&self.log), "every shard took all events");
            assert_eq!(seat.shard.excess(), (0, 0), "nobody lacks anything");
            for peer in seat.peers.iter().flatten().filter(|peer| !peer.left) {
                assert!(peer.opened_at.is_some(), "a peer stayed and was not let in: {peer:?}");
                self.check_complete(peer);
            }
        }
    }

    /// Returns once every peer is let in.
    async fn let_in(&mut self) {
        let waits = |peer: &Peer| peer.opened_at.is_none() && !peer.left;
        while !self.round(1).await
            || self.seats.iter().flat_map(|seat| seat.peers.iter().flatten()).any(waits)
        {}
    }

    /// A topic whose only subscriber reads nothing takes all it may. Its publishers are refused or
    /// wait, those of another topic are not.
    pub async fn saturate(&mut self) {
        let at = self.dice.roll(self.seats.len() as u64) as usize;
        let Some(hot) = self.join(at, vec![HOT], None) else { return };
        for at in 0..self.seats.len() {
            self.join(at, vec![COLD], None);
        }
        self.let_in().await;
        let seat = &mut self.seats[at];
        seat.peers[hot as usize].as_mut().expect("it stays").was_stalled = true;
        seat.shard.ring_mut().stall(hot, true);
        let mut refused = false;
        for _ in 0..1_000 {
            let number = self.publishers.single(&self.hub, HOT, 9_000);
            while !self.round(1).await {}
            refused = self.publishers.of(number).fate == Fate::Refused;
            if refused {
                break;
            }
        }
        assert!(refused, "one subscriber that reads nothing keeps its topic's memory");
        let [waits, passes] = [HOT, COLD].map(|topic| {
            let stream = self.publishers.open(&self.hub);
            self.publishers.write(stream, topic, 9_000, &mut self.dice);
            self.publishers.close(stream);
            stream
        });
        self.tally.saturated += 1;
        let legal = self.publishers.tried.iter().rev().nth(1).is_some_and(|hot| hot.is_legal);
        let single = self.publishers.single(&self.hub, COLD, 9_000);
        for _ in 0..50 {
            self.round(1).await;
        }
        assert!(matches!(self.publishers.of(single).fate, Fate::Accepted(_)), "another topic has room");
        assert!(self.publishers.is_answered(passes), "a stream of another topic has room");
        assert!(!legal || !self.publishers.is_answered(waits), "a stream waits for room");
        self.settle().await;
        assert!(self.publishers.is_answered(waits), "a topic has room again once its subscriber reads");
    }

    /// One of several subscribers of a topic reads nothing. It is cut before its publishers give
    /// up, whatever shards the others are on, and nobody else is where the weather is fair.
    pub async fn cut_one(&mut self) {
        let seats = self.seats.len();
        let crowd: Vec<(usize, Slot)> = (0..6)
            .filter_map(|number| Some((number % seats, self.join(number % seats, vec![HOT], None)?)))
            .collect();
        self.let_in().await;
        let [(at, slot), _, _, ..] = crowd[..] else { return };
        let seat = &mut self.seats[at];
        seat.peers[slot as usize].as_mut().expect("it stays").was_stalled = true;
        seat.shard.ring_mut().stall(slot, true);
        let before = self.tally.cut;
        for _ in 0..1_000 {
            if self.seats[at].peers[slot as usize].is_none() {
                break;
            }
            self.publishers.single(&self.hub, HOT, 9_000);
            while !self.round(20).await {}
        }
        assert!(self.seats[at].peers[slot as usize].is_none(), "the one that reads nothing is cut");
        assert!(self.weather == Weather::Rough || self.tally.cut == before + 1, "nobody else is");
        self.settle().await;
    }

    /// Events are accepted until the hub is told to drain, and while half of the peers do not read:
    /// all who stay get them before the end.
    pub async fn drain(&mut self) {
        self.stall_all(true);
        for _ in 0..40 {
            self.publish();
            self.step().await;
        }
        self.drain.notify_one();
        self.draining = true;
        self.publish();
        self.stall_all(false);
        for _ in 0..60_000 {
            if self.life.is_finished() {
                break;
            }
            let ms = self.dice.roll(3);
            self.round(ms).await;
        }
        assert!(self.life.is_finished(), "the drain comes to an end");
        (&mut self.life).await.expect("no panic").expect("a clean end");
        assert!(self.seats.iter().all(|seat| seat.has_ended), "all shards have ended");
        for _ in 0..100 {
            self.breathe().await;
        }
        assert_eq!(self.publishers.waiting, 0, "everybody got an answer");
        self.check_fates();
        for seat in &self.seats {
            let stayed = seat.peers.iter().flatten().find(|peer| !peer.left);
            assert!(stayed.is_none(), "every peer was told the end: {stayed:?}");
        }
    }
}
