//! The end of a life without faults: all is sound, and takes no more space than it should.

use super::clients::{Checked, Scene};
use super::life::DIR;
use super::rng::Rng;

const BLOCK: u64 = 4096;
/// What an opening prepares of a segment that it makes.
const FIRST_ROOM: u64 = 1 << 20;

/// With its record's header.
const LONGEST_KEY: u64 = 400;

/// Merges give back room for their own groups only the next time.
const PASSES: usize = 4;

pub async fn calm_end(scene: &Scene, segment_bytes: u64) -> Checked {
    let mut rng = Rng::new(0);
    for _ in 0..PASSES {
        scene.compact(&mut rng).await?;
    }
    scene.verify().await?;
    scene.check_whole().await?;
    check_space(scene, segment_bytes).await
}

/// What is used, when all has been merged that is worth while.
async fn check_space(scene: &Scene, segment_bytes: u64) -> Checked {
    let stats = scene.store.stats().await.map_err(|error| format!("{error:?}"))?;
    let used = scene.world.borrow().disk.used_in(DIR);
    let (largest, keys) = {
        let keys = &scene.model.borrow().keys;
        let lens = keys.iter().flat_map(|key| key.tried.values()).copied();
        (lens.max().unwrap_or(0) as u64 + LONGEST_KEY, keys.len() as u64)
    };
    let mut most = 52; // the superblock
    for partition in &stats.partitions {
        let (live, segments) = (partition.live_bytes, partition.segments);
        // A sealed segment keeps garbage of a sixteenth and four blocks: marks, padding, header. One
        // with a record that is larger than a segment keeps them for each that it is as long as.
        let whole = segments + live / segment_bytes;
        let logs = (live + whole * 4 * BLOCK) / 15 * 16;
        // One goes on, as far as it is prepared: a segment, or one record that is larger.
        let active = segment_bytes.max(FIRST_ROOM).max(largest + 4 * BLOCK);
        // Two spares, made while the disk was nearly full, have up to a segment; or the least.
        let spares = 2 * segment_bytes.max(FIRST_ROOM / 16);
        // A hint lists segments and records, of which the smallest is a delete.
        let records = keys + (logs - live) / 32;
        let hints = segments * (92 + 8 * segments) + 24 * records;
        // Once something may be promised.
        let journal = BLOCK + (segment_bytes / 4).clamp(16 << 10, 1 << 20);
        most += logs + active + spares + hints + journal;
    }
    if used > most {
        return Err(format!("{used} bytes are used, and {most} may be: {stats:?}"));
    }
    Ok(())
}
