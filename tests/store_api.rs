//! What a store does when nothing goes wrong: every operation, at its limits, from every executor,
//! and from many callers at the same time.

#![allow(missing_docs, clippy::unwrap_used)]

mod store_common;

use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use futures::stream::FuturesUnordered;
use ringlog::rt::{self, Executor, ExecutorConfig, Runtime, RuntimeConfig};
use ringlog::{Bytes, Error, MAX_KEY_LEN, MAX_VALUE_LEN, QUEUE_BYTES, Reply, Stats, Store};
use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use store_common::{BLOCK, Rng, Watchdog, crash_image, disk_dir, entries, log_path, open, run};

// ---- one key ----------------------------------------------------------------------------------

#[test]
fn what_is_put_is_got_also_after_reopening() {
    let dir = disk_dir();
    for closing in [true, false] {
        let store = open(dir.path(), 2);
        let key = format!("key {closing}");
        assert_eq!(run(store.get(&key)).unwrap(), None);
        run(store.put(&key, b"value")).unwrap();
        assert_eq!(run(store.get(&key)).unwrap().as_deref(), Some(&b"value"[..]));
        if closing {
            run(store.close()).unwrap();
        } else {
            drop(store);
        }
        let store = open(dir.path(), 2);
        assert_eq!(run(store.get(&key)).unwrap().as_deref(), Some(&b"value"[..]));
    }
}

#[test]
fn the_last_value_counts_also_after_reopening() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    for value in ["a long first value", "", "third"] {
        run(store.put("key", value)).unwrap();
        assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(value.as_bytes()));
    }
    assert_eq!(run(store.stats()).unwrap().total().keys, 1);
    run(store.close()).unwrap();
    let store = open(dir.path(), 1);
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"third"[..]));
}

#[test]
fn a_deleted_key_stays_away_until_it_is_put_again() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    assert!(!run(store.delete("key")).unwrap());
    run(store.put("key", "one")).unwrap();
    assert!(run(store.delete("key")).unwrap());
    assert!(!run(store.delete("key")).unwrap());
    assert_eq!(run(store.get("key")).unwrap(), None);
    run(store.close()).unwrap();

    let store = open(dir.path(), 1);
    assert_eq!(run(store.get("key")).unwrap(), None);
    assert!(!run(store.delete("key")).unwrap());
    run(store.put("key", "two")).unwrap();
    run(store.close()).unwrap();

    let store = open(dir.path(), 1);
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&b"two"[..]));
}

#[test]
fn deleting_what_is_not_there_writes_nothing() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    assert!(!run(store.delete("nobody")).unwrap());
    assert_eq!(run(store.stats()).unwrap().total().commits, 0);
}

#[test]
fn an_empty_key_and_an_empty_value_are_a_key_and_a_value() {
    let dir = disk_dir();
    let store = open(dir.path(), 3);
    run(store.put("", "of the empty key")).unwrap();
    run(store.put("empty", "")).unwrap();
    run(store.put([0], [0])).unwrap();
    run(store.close()).unwrap();
    let store = open(dir.path(), 3);
    assert_eq!(run(store.get("")).unwrap().as_deref(), Some(&b"of the empty key"[..]));
    assert_eq!(run(store.get("empty")).unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(run(store.get([0])).unwrap().as_deref(), Some(&[0][..]));
    assert!(run(store.delete("")).unwrap());
    assert_eq!(run(store.get("")).unwrap(), None);
}

/// Every length around the alignment of records.
#[test]
fn keys_and_values_of_every_small_length_come_back() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let pair = |key: usize, value: usize| {
        let mut name = format!("{key},{value},").into_bytes();
        name.resize(name.len() + key, b'k');
        (name, vec![0xa5; value])
    };
    let pairs: Vec<_> = (0..9).flat_map(|k| (0..17).map(move |v| pair(k, v))).collect();
    run(try_join_all(pairs.iter().map(|(key, value)| store.put(key, value)))).unwrap();
    run(store.close()).unwrap();
    let store = open(dir.path(), 2);
    for (key, value) in &pairs {
        assert_eq!(run(store.get(key)).unwrap().as_deref(), Some(&value[..]));
    }
}

// ---- limits -----------------------------------------------------------------------------------

#[test]
fn the_longest_key_is_taken_and_one_byte_more_is_refused() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let mut key = vec![b'k'; MAX_KEY_LEN];
    assert_eq!(key.len(), 65_535);
    run(store.put(&key, "value")).unwrap();
    let before = crash_image(dir.path(), 1);

    key.push(b'k');
    let too_large = |error| matches!(error, Error::KeyTooLarge { len: 65_536 });
    assert!(too_large(run(store.put(&key, "value")).unwrap_err()));
    assert!(too_large(run(store.get(&key)).unwrap_err()));
    assert!(too_large(run(store.delete(&key)).unwrap_err()));
    assert!(crash_image(dir.path(), 1) == before, "something was written");

    key.pop();
    run(store.close()).unwrap();
    let store = open(dir.path(), 1);
    assert_eq!(run(store.get(&key)).unwrap().as_deref(), Some(&b"value"[..]));
    assert!(run(store.delete(&key)).unwrap());
}

#[test]
fn the_longest_value_is_taken_and_one_byte_more_is_refused() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let mut value = vec![7; MAX_VALUE_LEN];
    assert_eq!(value.len(), 64 << 20);
    value[MAX_VALUE_LEN - 1] = 8;
    run(store.put("key", &value)).unwrap();
    let before = fs::metadata(log_path(dir.path(), 0)).unwrap().len();

    value.push(9);
    let error = run(store.put("key", &value)).unwrap_err();
    assert!(matches!(error, Error::ValueTooLarge { len: 67_108_865 }), "{error:?}");
    assert_eq!(fs::metadata(log_path(dir.path(), 0)).unwrap().len(), before);

    value.pop();
    assert!(run(store.get("key")).unwrap().unwrap() == value);
    run(store.close()).unwrap();
    let store = open(dir.path(), 1);
    assert!(run(store.get("key")).unwrap().unwrap() == value);
}

/// The longest key with the longest value is more than the queue takes: it is let in alone.
#[test]
fn a_request_larger_than_the_queue_is_let_in_alone() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let (key, value) = (vec![b'k'; MAX_KEY_LEN], vec![7; MAX_VALUE_LEN]);
    assert!(key.len() + value.len() > QUEUE_BYTES);
    let small = (0..20).map(|n: u32| store.put(n.to_le_bytes(), "small"));
    let large = [store.put(&key, &value), store.put(&key, "small again")];
    let more = (20..40).map(|n: u32| store.put(n.to_le_bytes(), "small"));
    run(try_join_all(small.chain(large).chain(more))).unwrap();
    assert_eq!(run(store.get(&key)).unwrap().as_deref(), Some(&b"small again"[..]));
    assert_eq!(run(store.stats()).unwrap().total().keys, 41);
}

#[test]
fn more_than_the_queue_holds_waits_and_completes() {
    const VALUE: usize = 3 << 20;
    const PUTS: usize = QUEUE_BYTES * 2 / VALUE;
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let value = |n: usize| vec![u8::try_from(n).unwrap(); VALUE];
    run(try_join_all((0..PUTS).map(|n| store.put(n.to_string(), value(n))))).unwrap();
    let stats = run(store.stats()).unwrap().total();
    assert_eq!(stats.keys, PUTS as u64);
    for n in [0, PUTS / 2, PUTS - 1] {
        assert!(run(store.get(n.to_string())).unwrap().unwrap() == value(n), "{n}");
    }
}

/// Those that wait for the queue may give up; the others still get their turn.
#[test]
fn callers_that_give_up_waiting_do_not_block_the_queue() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let mut cx = Context::from_waker(Waker::noop());
    let value = vec![1; 9 << 20];
    let mut puts: Vec<_> = (0..30).map(|n: u32| store.put(n.to_le_bytes(), &value)).collect();
    puts.retain_mut(|put| Pin::new(put).poll(&mut cx).is_pending());
    // Every third is given up, wherever it stands.
    let mut n = 0;
    puts.retain(|_| {
        n += 1;
        n % 3 != 0
    });
    run(try_join_all(puts)).unwrap();
    run(store.put("last", "one")).unwrap();
    // Of 30, at most 10 were given up.
    let keys = run(store.stats()).unwrap().total().keys;
    assert!((21..=31).contains(&keys), "{keys}");
}

#[test]
fn ten_thousand_puts_at_the_same_time_through_one_thread() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = Store::builder(dir.path()).partitions(4).threads(1).open().unwrap();
    let key = |n: u32| format!("key {n}");
    run(try_join_all((0..10_000).map(|n| store.put(key(n), n.to_le_bytes())))).unwrap();
    let total = run(store.stats()).unwrap().total();
    assert_eq!((total.keys, total.records), (10_000, 10_000));
    run(store.close()).unwrap();
    let store = Store::builder(dir.path()).partitions(4).threads(1).open().unwrap();
    let values = run(try_join_all((0..10_000).map(|n| store.get(key(n))))).unwrap();
    for (n, value) in (0u32..).zip(values) {
        assert_eq!(value.as_deref(), Some(&n.to_le_bytes()[..]));
    }
}

// ---- futures and handles ----------------------------------------------------------------------

fn is_send<T: Send + 'static>(value: T) -> T {
    value
}

fn is_error<E: std::error::Error + Clone + Send + Sync + 'static>() {}

fn is_shared<T: Clone + Send + Sync + 'static>(value: T) -> T {
    value
}

#[test]
fn handles_and_replies_may_go_to_any_thread() {
    let dir = disk_dir();
    let store = is_shared(open(dir.path(), 1));
    let put: Reply<()> = is_send(store.put("key", "value"));
    let get: Reply<Option<Bytes>> = is_send(store.get("key"));
    let delete: Reply<bool> = is_send(store.delete("key"));
    let sync: Reply<()> = is_send(store.sync());
    let stats: Reply<Stats> = is_send(store.stats());
    let close: Reply<()> = is_send(store.clone().close());
    is_error::<Error>();
    let elsewhere = std::thread::spawn(move || {
        run(put).unwrap();
        let value = run(get).unwrap();
        run(sync).unwrap();
        assert!(run(delete).unwrap());
        assert_eq!(run(stats).unwrap().total().records, 2);
        run(close).unwrap();
        value
    });
    assert_eq!(elsewhere.join().unwrap().as_deref(), Some(&b"value"[..]));
    assert!(matches!(run(store.get("key")), Err(Error::Closed)));
}

#[test]
fn nothing_happens_before_the_first_poll() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    run(store.put("kept", "value")).unwrap();
    run(store.sync()).unwrap();
    let before = crash_image(dir.path(), 2);
    let replies = (store.put("key", "value"), store.delete("kept"), store.clone().close());
    run(store.sync()).unwrap();
    assert!(crash_image(dir.path(), 2) == before);
    drop(replies);
    run(store.sync()).unwrap();
    assert!(crash_image(dir.path(), 2) == before);
    assert_eq!(run(store.get("key")).unwrap(), None);
    assert_eq!(run(store.get("kept")).unwrap().as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_reply_outlives_the_handle_and_what_it_was_made_of() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let put = {
        let (key, value) = (String::from("key"), vec![1, 2, 3]);
        store.put(&key, &value)
    };
    drop(store);
    run(put).unwrap();
    let store = open(dir.path(), 1);
    assert_eq!(run(store.get("key")).unwrap().as_deref(), Some(&[1, 2, 3][..]));
}

#[test]
fn clones_are_the_same_store() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let clone = store.clone();
    run(store.put("key", "value")).unwrap();
    assert_eq!(run(clone.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
    drop(store);
    assert!(run(clone.delete("key")).unwrap());
    assert_eq!(run(clone.stats()).unwrap().total().records, 2);
}

#[test]
fn keys_and_values_may_be_anything_that_is_bytes() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    run(async {
        store.put("str", b"array").await?;
        store.put(String::from("string"), vec![1]).await?;
        store.put(b"array", "str").await?;
        store.put(&b"slice"[..], &[2u8][..]).await?;
        store.put(vec![b'v'], Bytes::from_static(b"bytes")).await?;
        store.put(Bytes::from_static(b"bytes"), String::from("string")).await?;
        for key in ["str", "string", "array", "slice", "v", "bytes"] {
            assert!(store.get(key).await?.is_some(), "{key}");
        }
        assert!(store.delete(vec![b'v']).await?);
        Ok::<(), Error>(())
    })
    .unwrap();
}

#[test]
fn a_store_says_where_it_is_and_not_what_it_holds() {
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let text = format!("{store:?} {:?}", store.put("secret key", "secret value"));
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

// ---- executors --------------------------------------------------------------------------------

async fn roundtrip(store: Store, key: String) -> Result<(), Error> {
    store.put(&key, "value").await?;
    assert_eq!(store.get(&key).await?.as_deref(), Some(&b"value"[..]));
    assert!(store.delete(&key).await?);
    assert_eq!(store.get(&key).await?, None);
    store.sync().await?;
    store.stats().await.map(drop)
}

#[test]
fn it_is_used_from_tokio() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    tokio.block_on(async {
        let store = open(dir.path(), 2);
        let spawn = |n| tokio::spawn(roundtrip(store.clone(), format!("key {n}")));
        let tasks: Vec<_> = (0..100).map(spawn).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        store.close().await.unwrap();
    });
}

#[test]
fn it_is_used_from_the_runtimes_executor() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let executor = Executor::new(ExecutorConfig::default()).unwrap();
    executor.block_on(async {
        let spawn = |n| rt::spawn(roundtrip(store.clone(), format!("key {n}")));
        let tasks: Vec<_> = (0..100).map(spawn).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        store.close().await.unwrap();
    });
}

#[test]
fn it_is_used_from_the_threads_of_another_runtime() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let config = RuntimeConfig { num_threads: 2, ..RuntimeConfig::default() };
    let runtime = Runtime::start(config).unwrap();
    let schedule = |n| runtime.schedule(roundtrip(store.clone(), format!("key {n}")));
    let tasks: Vec<_> = (0..100).map(schedule).collect();
    for task in tasks {
        run(task).unwrap().unwrap();
    }
    let closing = runtime.schedule(store.close());
    run(closing).unwrap().unwrap();
    runtime.stop().unwrap();
}

/// `FuturesUnordered` gives each future a waker of its own.
#[test]
fn it_is_used_through_other_combinators() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    let tasks = (0..100).map(|n| roundtrip(store.clone(), format!("key {n}")));
    let mut tasks: FuturesUnordered<_> = tasks.collect();
    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio.block_on(async {
        while let Some(done) = tasks.next().await {
            done.unwrap();
        }
        store.close().await.unwrap();
    });
}

/// Opening blocks, but it is no mistake to block a thread that has nothing else to do.
#[test]
fn it_is_opened_and_dropped_inside_a_task_of_the_runtime() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let executor = Executor::new(ExecutorConfig::default()).unwrap();
    executor.block_on(async {
        for _ in 0..2 {
            let store = open(dir.path(), 2);
            roundtrip(store.clone(), String::from("key")).await.unwrap();
            drop(store);
        }
    });
}

// ---- many callers -----------------------------------------------------------------------------

#[test]
fn every_caller_reads_what_it_has_written() {
    const TASKS: u32 = 32;
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 3);
    let task = |task: u32| {
        let store = store.clone();
        async move {
            for n in 0..20u32 {
                let key = format!("{task}/{}", n % 3);
                if n % 5 == 4 {
                    store.delete(&key).await.unwrap();
                    assert_eq!(store.get(&key).await.unwrap(), None);
                } else {
                    store.put(&key, n.to_le_bytes()).await.unwrap();
                    let value = store.get(&key).await.unwrap();
                    assert_eq!(value.as_deref(), Some(&n.to_le_bytes()[..]));
                }
            }
        }
    };
    run(join_all((0..TASKS).map(task)));
}

#[test]
fn of_many_writers_to_one_key_one_wins_for_good() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let mut winners = Vec::new();
    let store = open(dir.path(), 2);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let store = &store;
            scope.spawn(move || {
                let put = |n: u32| store.put("key", format!("{thread}/{n}"));
                run(try_join_all((0..50).map(put))).unwrap();
            });
        }
    });
    for _ in 0..3 {
        winners.push(run(store.get("key")).unwrap().unwrap());
    }
    run(store.close()).unwrap();
    for _ in 0..2 {
        winners.push(run(open(dir.path(), 2).get("key")).unwrap().unwrap());
    }
    assert!(winners.iter().all(|winner| *winner == winners[0]), "{winners:?}");
    // Each thread sent its own in order: its last stands after its others.
    let winner = std::str::from_utf8(&winners[0]).unwrap().to_owned();
    assert!(winner.ends_with("/49"), "{winner}");
}

#[test]
fn of_many_deletes_of_a_key_exactly_one_found_it() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    for round in 0..20 {
        let key = format!("key {round}");
        run(store.put(&key, "value")).unwrap();
        let found = run(try_join_all((0..16).map(|_| store.delete(&key)))).unwrap();
        assert_eq!(found.iter().filter(|found| **found).count(), 1);
        assert_eq!(run(store.get(&key)).unwrap(), None);
    }
    let total = run(store.stats()).unwrap().total();
    assert_eq!((total.keys, total.records), (0, 40), "a delete that found nothing was written");
}

/// The requests of one thread to one key are in the order of their first polls, durable or not.
#[test]
fn a_write_is_judged_by_the_writes_before_it_that_are_not_durable_yet() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    for round in 0..20 {
        let key = format!("key {round}");
        let ((), found, again, (), found_new) = run(async {
            futures::try_join!(
                store.put(&key, "one"),
                store.delete(&key),
                store.delete(&key),
                store.put(&key, "two"),
                store.delete(&key),
            )
        })
        .unwrap();
        assert_eq!((found, again, found_new), (true, false, true));
        assert_eq!(run(store.get(&key)).unwrap(), None);
    }
    run(store.close()).unwrap();
    let store = open(dir.path(), 1);
    assert_eq!(run(store.stats()).unwrap().total().keys, 0);
}

/// As above, with the requests spread over many groups: some are durable, one group is on its way,
/// one gathers.
#[test]
fn a_delete_is_judged_by_its_place_in_the_order_whatever_group_it_is_in() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let mut rng = Rng(8);
    let mut cx = Context::from_waker(Waker::noop());
    let mut there = [false; 4];
    let mut puts = Vec::new();
    let mut deletes = Vec::new();
    for n in 0..3_000 {
        let at = rng.below(there.len());
        if rng.below(2) == 0 {
            let mut put = store.put(at.to_string(), n.to_string());
            match Pin::new(&mut put).poll(&mut cx) {
                Poll::Ready(done) => done.unwrap(),
                Poll::Pending => puts.push(put),
            }
            there[at] = true;
        } else {
            let mut delete = store.delete(at.to_string());
            match Pin::new(&mut delete).poll(&mut cx) {
                Poll::Ready(found) => assert_eq!(found.unwrap(), there[at], "request {n}"),
                Poll::Pending => deletes.push((n, there[at], delete)),
            }
            there[at] = false;
        }
        for _ in 0..rng.below(100) {
            std::thread::yield_now();
        }
    }
    run(try_join_all(puts)).unwrap();
    for (n, found, delete) in deletes {
        assert_eq!(run(delete).unwrap(), found, "request {n}");
    }
    let check = |store: &Store| {
        for (at, there) in there.iter().enumerate() {
            assert_eq!(run(store.get(at.to_string())).unwrap().is_some(), *there, "key {at}");
        }
    };
    check(&store);
    drop(store);
    check(&open(dir.path(), 1));
}

#[test]
fn many_puts_at_the_same_time_share_commits() {
    const PUTS: u64 = 64;
    const ROUNDS: u64 = 10;
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    for round in 0..ROUNDS {
        let put = |n| store.put(format!("{round}/{n}"), "value");
        run(try_join_all((0..PUTS).map(put))).unwrap();
    }
    let total = run(store.stats()).unwrap().total();
    assert_eq!(total.records, PUTS * ROUNDS);
    assert!(total.commits * 4 < PUTS * ROUNDS, "{total:?}");
    assert!(total.records_per_commit() > 4.0);
}

#[test]
fn sync_waits_for_what_was_sent_before() {
    let dir = disk_dir();
    let store = open(dir.path(), 2);
    run(store.sync()).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for n in 0..100u32 {
        // Sent, and given up.
        let mut put = store.put(n.to_le_bytes(), "value");
        drop(Pin::new(&mut put).poll(&mut cx));
    }
    run(store.sync()).unwrap();
    assert_eq!(run(store.stats()).unwrap().total().records, 100);
    for n in 0..100u32 {
        assert_eq!(run(store.get(n.to_le_bytes())).unwrap().as_deref(), Some(&b"value"[..]));
    }
}

// ---- partitions and counts --------------------------------------------------------------------

#[test]
fn keys_spread_over_the_partitions_and_each_is_found_again() {
    let dir = disk_dir();
    // More partitions than threads, and more than there are cores.
    let open = || Store::builder(dir.path()).partitions(24).threads(2).open().unwrap();
    let store = open();
    let key = |n: u32| format!("key {n}");
    run(try_join_all((0..2_400).map(|n| store.put(key(n), n.to_le_bytes())))).unwrap();
    let stats = run(store.stats()).unwrap();
    assert_eq!(stats.partitions.len(), 24);
    for partition in &stats.partitions {
        // 100 on average; 6 standard deviations either way.
        assert!((40..=160).contains(&partition.keys), "{stats:?}");
    }
    run(store.close()).unwrap();
    for threads in [1, 2, 100] {
        let builder = Store::builder(dir.path()).partitions(24).threads(threads);
        let store = builder.open().unwrap();
        let values = run(try_join_all((0..2_400).map(|n| store.get(key(n))))).unwrap();
        for (n, value) in (0u32..).zip(values) {
            assert_eq!(value.as_deref(), Some(&n.to_le_bytes()[..]));
        }
        let reopened = run(store.stats()).unwrap();
        let keys = |stats: &Stats| stats.partitions.iter().map(|p| p.keys).collect::<Vec<_>>();
        assert_eq!(keys(&reopened), keys(&stats), "a key is in another partition");
    }
}

#[test]
fn stats_add_up() {
    let block = BLOCK as u64;
    let dir = disk_dir();
    let store = open(dir.path(), 3);
    let fresh = run(store.stats()).unwrap();
    assert_eq!(fresh.partitions.len(), 3);
    assert_eq!(fresh.total().log_bytes, 3 * block, "a header each");
    assert_eq!((fresh.total().keys, fresh.total().commits), (0, 0));

    for n in 0..30u32 {
        run(store.put(n.to_le_bytes(), vec![0; 100])).unwrap();
    }
    for n in 0..10u32 {
        assert!(run(store.delete(n.to_le_bytes())).unwrap());
    }
    run(store.put(20u32.to_le_bytes(), "over")).unwrap();
    let stats = run(store.stats()).unwrap();
    let total = stats.total();
    assert_eq!((total.keys, total.records, total.commits), (20, 41, 41), "one at a time");
    let written = 41 * block;
    // Zeroes that are written ahead of them are whole blocks.
    let zeroes = total.bytes_written.checked_sub(written).expect("each in a block of its own");
    assert_eq!(zeroes % block, 0);
    assert_eq!(total.log_bytes, written + 3 * block);
    for (n, partition) in stats.partitions.iter().enumerate() {
        let log = fs::read(log_path(dir.path(), n)).unwrap();
        let end = entries(&log).iter().rfind(|entry| entry.is_change()).unwrap().end;
        assert_eq!(partition.log_bytes, end.next_multiple_of(BLOCK) as u64);
        assert!(partition.bytes_written >= partition.log_bytes - block);
    }
    run(store.close()).unwrap();

    let store = open(dir.path(), 3);
    let total = run(store.stats()).unwrap().total();
    assert_eq!((total.keys, total.records, total.commits, total.bytes_written), (20, 0, 0, 0));
    assert_eq!(total.log_bytes, written + 6 * block, "a closed log ends with a seal");
}

// ---- callers that dally -----------------------------------------------------------------------

/// Polls a reply once, and leaves it alone.
fn send<T>(reply: &mut Reply<T>) {
    assert!(Pin::new(reply).poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

/// The queue has room for one of these at a time.
fn fills_the_queue() -> Vec<u8> {
    vec![7; MAX_VALUE_LEN]
}

#[test]
fn a_caller_that_is_not_polled_holds_up_nobody_behind_it() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let (mut first, mut second) =
        (store.put("a", fills_the_queue()), store.put("b", fills_the_queue()));
    send(&mut first);
    send(&mut second);
    // Nobody polls the two, and the get comes after them.
    assert_eq!(run(store.get("c")).unwrap(), None);
    run(first).unwrap();
    run(second).unwrap();
}

#[test]
fn a_sync_covers_the_writes_that_wait_for_the_queue() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let mut writes: Vec<_> = (0..3).map(|n| store.put([n], fills_the_queue())).collect();
    writes.iter_mut().for_each(send);
    run(store.sync()).unwrap();
    assert_eq!(run(store.stats()).unwrap().total().records, 3);
    run(try_join_all(writes)).unwrap();
}

#[test]
fn a_caller_that_goes_away_leaves_no_value_or_the_whole_one() {
    let _dog = Watchdog::new();
    let dir = disk_dir();
    let store = open(dir.path(), 1);
    let (mut first, mut second) =
        (store.put("a", fills_the_queue()), store.put("b", fills_the_queue()));
    send(&mut first);
    send(&mut second);
    drop(second); // it may have been sent by now, or not
    run(first).unwrap();
    run(store.sync()).unwrap();
    let b = run(store.get("b")).unwrap();
    assert!(b.is_none_or(|value| value == fills_the_queue()));
}
