//! Pieces of a stream, put together again, from any place on.

use super::*;
use rdb_storage::{Engine, MemoryEngine, WriteBatch};

/// 100 records in one family, 10 in another, none in a third, and some that do not belong.
fn frozen() -> FrozenSnapshot {
    let engine = MemoryEngine::new();
    let mut batch = WriteBatch::new();
    for n in 0..100u8 {
        batch.put(Family::Data, vec![5, n], vec![n; usize::from(n)]);
    }
    for n in 0..10u8 {
        batch.put(Family::Region, vec![n], vec![]);
    }
    batch.put(Family::Data, "\u{4}", "not in the range");
    batch.put(Family::Data, "\u{6}", "not in the range");
    engine.write(&batch).unwrap();
    let ranges = vec![
        (Family::Data, KeyRange::prefix(&[5])),
        (Family::Conflicts, KeyRange::all()),
        (Family::Region, KeyRange::all()),
    ];
    let snapshot = FrozenSnapshot::new("s", engine.snapshot(), ranges);
    // A frozen view does not change.
    let mut batch = WriteBatch::new();
    batch.put(Family::Data, vec![5, 0, 0], "later");
    engine.write(&batch).unwrap();
    snapshot
}

fn pieces(reader: &mut SnapshotReader, mut offset: u64, max_bytes: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    loop {
        let piece = reader.read(offset, max_bytes).unwrap().unwrap();
        assert_eq!(piece.offset, offset);
        offset += piece.data.len() as u64;
        pieces.push(piece);
        if pieces.last().is_some_and(|piece| piece.done) {
            return pieces;
        }
    }
}

fn received(stream: Vec<u8>) -> Vec<Result<SnapshotItem, StorageError>> {
    let received = ReceivedSnapshot::new("s".to_owned(), Box::new(std::io::Cursor::new(stream)));
    SnapshotData::Received(received).into_records().collect()
}

#[test]
fn what_is_sent_in_pieces_is_what_was_frozen() {
    let own: Vec<_> = SnapshotData::Frozen(frozen())
        .into_records()
        .map(Result::unwrap)
        .collect();
    assert_eq!(own.len(), 110);
    assert_eq!(
        own.first().map(|item| (item.family, item.key.to_vec())),
        Some((Family::Data, vec![5, 0]))
    );
    assert_eq!(
        own.last().map(|item| (item.family, item.key.to_vec())),
        Some((Family::Region, vec![9]))
    );
    for max_bytes in [1, 100, 1000, 1 << 20] {
        let sent = pieces(&mut frozen().reader(), 0, max_bytes);
        assert!(sent.iter().all(|piece| piece.data.len() < max_bytes + 120));
        let stream = sent.iter().flat_map(|piece| piece.data.to_vec()).collect();
        let back: Vec<_> = received(stream).into_iter().map(Result::unwrap).collect();
        assert_eq!(back, own, "pieces of {max_bytes}");
    }
}

#[test]
fn a_transfer_goes_on_at_any_offset_it_had_reached() {
    let whole = pieces(&mut frozen().reader(), 0, 300);
    assert!(whole.len() > 10);
    for (nth, piece) in whole.iter().enumerate() {
        // Another reader, as after a restart of the sender; then a lost piece; then onwards.
        let mut reader = frozen().reader();
        assert_eq!(
            reader.read(piece.offset, 300).unwrap().as_ref(),
            Some(piece)
        );
        assert_eq!(
            reader.read(piece.offset, 300).unwrap().as_ref(),
            Some(piece)
        );
        let next = piece.offset + piece.data.len() as u64;
        if !piece.done {
            assert_eq!(pieces(&mut reader, next, 300), whole[nth + 1..]);
        }
    }
    let mut reader = frozen().reader();
    assert_eq!(reader.read(1, 300).unwrap(), None);
    assert_eq!(reader.read(1 << 40, 300).unwrap(), None);
}

#[test]
fn an_empty_snapshot_is_one_empty_piece() {
    let engine = MemoryEngine::new();
    for ranges in [vec![], vec![(Family::Data, KeyRange::all())]] {
        let snapshot = FrozenSnapshot::new("s", engine.snapshot(), ranges);
        let sent = pieces(&mut snapshot.reader(), 0, 100);
        assert_eq!(
            sent,
            [Piece {
                offset: 0,
                data: Bytes::new(),
                done: true
            }]
        );
    }
    assert_eq!(received(vec![]).len(), 0);
}

#[test]
fn a_damaged_stream_is_an_error_and_then_the_end() {
    let whole: Vec<u8> = pieces(&mut frozen().reader(), 0, 1 << 20)
        .remove(0)
        .data
        .to_vec();
    let cut = received(whole[..whole.len() - 1].to_vec());
    assert_eq!(cut.len(), 110);
    assert!(cut.last().unwrap().as_ref().unwrap_err().is_corruption());
    assert_eq!(cut.iter().filter(|item| item.is_err()).count(), 1);

    let huge = received(vec![0xff; 30]);
    assert!(huge[0].as_ref().unwrap_err().is_corruption());
    let no_family = SnapshotRecord {
        family: 99,
        ..Default::default()
    }
    .encode_length_delimited_to_vec();
    assert!(
        received(no_family)[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("99")
    );
}

#[test]
fn families_keep_their_numbers_on_the_wire() {
    for each in Family::ALL {
        assert_eq!(family(family_to_wire(each)), Some(each));
    }
    assert_eq!(family(0), None);
}
