//! The simulated file system: names, which are durable when their directory was synced, and files.
//!
//! It promises what POSIX does and no more. A crash keeps or drops each change of a name that was
//! not synced, a rename as a whole. What a sync that failed has covered no other sync makes durable
//! until the next life: then the names that are found are names like others.

use super::content::{Content, Crash};
use super::rng::Rng;
use super::sparse::Sector;
use std::collections::{BTreeMap, BTreeSet};

pub type Ino = u64;
pub type Errno = i32;

pub const ROOT: Ino = 1;

/// Names that change together.
type Change = Vec<(String, Option<Ino>)>;

#[derive(Clone, Debug, Default)]
pub struct Dir {
    pub names: BTreeMap<String, Ino>,
    durable: BTreeMap<String, Ino>,
    unsynced: Vec<(u64, Change)>,
    /// Covered by a sync that failed, and older than all that is unsynced.
    doomed: Vec<(u64, Change)>,
}

impl Dir {
    /// What a sync covers that was issued at `by`, in order.
    fn covered(&mut self, by: u64) -> Vec<(u64, Change)> {
        let covered = self.unsynced.iter().take_while(|(at, _)| *at <= by).count();
        self.unsynced.drain(..covered).collect()
    }

    fn harden(&mut self, by: u64) {
        for (_, change) in self.covered(by) {
            // What becomes of an older change of these names is no matter any more.
            for (_, older) in &mut self.doomed {
                older.retain(|(old, _)| change.iter().all(|(name, _)| name != old));
            }
            apply(&mut self.durable, &change);
        }
    }
}

#[derive(Clone, Debug)]
pub enum Node {
    Dir(Dir),
    File(Content),
    /// `/dev/urandom`.
    Random,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Disk {
    nodes: BTreeMap<Ino, Node>,
    next: Ino,
    /// Counts changes, so each has a time.
    pub now: u64,
    /// Of the bytes that files have.
    pub capacity: u64,
    /// What was there once.
    old: Vec<Sector>,
}

fn apply(names: &mut BTreeMap<String, Ino>, change: &Change) {
    for (name, ino) in change {
        match ino {
            Some(ino) => names.insert(name.clone(), *ino),
            None => names.remove(name),
        };
    }
}

impl Disk {
    /// An empty disk, but for `/sim` and the device of random bytes.
    pub fn new() -> Self {
        let mut disk =
            Self { nodes: BTreeMap::new(), next: 5, now: 1, capacity: u64::MAX, old: Vec::new() };
        let dir = |names: &[(&str, Ino)]| {
            let names: BTreeMap<_, _> = names.iter().map(|(n, i)| ((*n).to_owned(), *i)).collect();
            Node::Dir(Dir { durable: names.clone(), names, ..Dir::default() })
        };
        disk.nodes.insert(ROOT, dir(&[("sim", 2), ("dev", 3)]));
        disk.nodes.insert(2, dir(&[]));
        disk.nodes.insert(3, dir(&[("urandom", 4)]));
        disk.nodes.insert(4, Node::Random);
        disk
    }

    pub fn node(&self, ino: Ino) -> &Node {
        &self.nodes[&ino]
    }

    pub fn try_node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    pub fn file(&mut self, ino: Ino) -> Result<&mut Content, Errno> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(content)) => Ok(content),
            Some(Node::Dir(_)) => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }

    fn dir(&mut self, ino: Ino) -> Result<&mut Dir, Errno> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(libc::ENOTDIR),
        }
    }

    /// The directory that a path's last part is in, and that part.
    pub fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a str), Errno> {
        let (dir, name) = path.rsplit_once('/').ok_or(libc::ENOENT)?;
        let ino = if dir.is_empty() { ROOT } else { self.find(dir)? };
        Ok((ino, name))
    }

    pub fn find(&self, path: &str) -> Result<Ino, Errno> {
        let mut ino = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let Node::Dir(dir) = self.node(ino) else { return Err(libc::ENOTDIR) };
            ino = *dir.names.get(part).ok_or(libc::ENOENT)?;
        }
        Ok(ino)
    }

    fn change(&mut self, dir: Ino, change: Change) -> Result<(), Errno> {
        self.now += 1;
        let now = self.now;
        let dir = self.dir(dir)?;
        apply(&mut dir.names, &change);
        dir.unsynced.push((now, change));
        Ok(())
    }

    fn create(&mut self, path: &str, node: Node) -> Result<Ino, Errno> {
        let (dir, name) = self.parent(path)?;
        self.dir(dir)?;
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        self.change(dir, vec![(name.to_owned(), Some(ino))])?;
        Ok(ino)
    }

    pub fn open(&mut self, path: &str, flags: i32) -> Result<Ino, Errno> {
        let has = |flag| flags & flag == flag;
        let ino = match self.find(path) {
            Ok(_) if has(libc::O_CREAT | libc::O_EXCL) => return Err(libc::EEXIST),
            Err(libc::ENOENT) if has(libc::O_CREAT) => {
                self.create(path, Node::File(Content::default()))?
            }
            found => found?,
        };
        match self.node(ino) {
            Node::Dir(_) if flags & libc::O_ACCMODE != libc::O_RDONLY => Err(libc::EISDIR),
            Node::File(_) | Node::Random if has(libc::O_DIRECTORY) => Err(libc::ENOTDIR),
            Node::File(_) if has(libc::O_TRUNC) => {
                self.now += 1;
                let now = self.now;
                self.file(ino)?.truncate(0, now);
                Ok(ino)
            }
            _ => Ok(ino),
        }
    }

    pub fn make_dir(&mut self, path: &str) -> Result<(), Errno> {
        match self.find(path) {
            Ok(_) => Err(libc::EEXIST),
            Err(libc::ENOENT) => self.create(path, Node::Dir(Dir::default())).map(drop),
            Err(errno) => Err(errno),
        }
    }

    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let (ino, (dir, old), (to_dir, new)) =
            (self.find(from)?, self.parent(from)?, self.parent(to)?);
        assert_eq!(dir, to_dir, "nothing here is moved between directories");
        self.change(dir, vec![(old.to_owned(), None), (new.to_owned(), Some(ino))])
    }

    pub fn link(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let (ino, (dir, name)) = (self.find(from)?, self.parent(to)?);
        if self.find(to).is_ok() {
            return Err(libc::EEXIST);
        }
        self.change(dir, vec![(name.to_owned(), Some(ino))])
    }

    /// How many names a file has.
    pub fn links(&self, ino: Ino) -> u32 {
        let names = self.nodes.values().filter_map(|node| match node {
            Node::Dir(dir) => Some(dir.names.values().filter(|&&of| of == ino).count()),
            _ => None,
        });
        u32::try_from(names.sum::<usize>()).unwrap()
    }

    /// Whether it has a name, or a power cut may give it one.
    pub fn may_have_a_name(&self, ino: Ino) -> bool {
        self.nodes.values().any(|node| match node {
            Node::Dir(dir) => dir.names.values().chain(dir.durable.values()).any(|&of| of == ino),
            _ => false,
        })
    }

    pub fn unlink(&mut self, path: &str) -> Result<(), Errno> {
        let (ino, (dir, name)) = (self.find(path)?, self.parent(path)?);
        if matches!(self.node(ino), Node::Dir(_)) {
            return Err(libc::EISDIR);
        }
        self.change(dir, vec![(name.to_owned(), None)])
    }

    /// What a sync that was issued at `by` covers is durable; or not, for good.
    pub fn sync(&mut self, ino: Ino, by: u64, fails: Option<&mut Rng>) -> Result<(), Errno> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(content)) => content.sync(by, fails),
            Some(Node::Dir(dir)) if fails.is_none() => dir.harden(by),
            Some(Node::Dir(dir)) => {
                let covered = dir.covered(by);
                dir.doomed.extend(covered);
            }
            _ => return Err(libc::EINVAL),
        }
        Ok(())
    }

    /// The journal may still have what a sync of a directory has failed to write.
    pub fn begin_life(&mut self) {
        for node in self.nodes.values_mut() {
            if let Node::Dir(dir) = node {
                dir.doomed.append(&mut dir.unsynced);
                std::mem::swap(&mut dir.doomed, &mut dir.unsynced);
            }
        }
    }

    /// All that can be reached by the names there are now.
    fn reachable(&self) -> BTreeSet<Ino> {
        let (mut seen, mut left) = (BTreeSet::new(), vec![ROOT]);
        while let Some(ino) = left.pop() {
            if seen.insert(ino)
                && let Node::Dir(dir) = self.node(ino)
            {
                left.extend(dir.names.values().copied());
            }
        }
        seen
    }

    /// Bytes that files have.
    pub fn used(&self) -> u64 {
        let used = |ino: Ino| match self.node(ino) {
            Node::File(content) => content.len,
            _ => 0,
        };
        self.reachable().into_iter().map(used).sum()
    }

    /// The same of those below a path.
    pub fn used_in(&self, path: &str) -> u64 {
        let len = |ino: Ino| match self.node(ino) {
            Node::File(content) => content.len,
            _ => 0,
        };
        let inside = self.files().into_iter().filter(|(file, _)| file.starts_with(path));
        inside.map(|(_, ino)| len(ino)).sum()
    }

    /// The files below `/sim`, by path.
    pub fn files(&self) -> Vec<(String, Ino)> {
        let (mut files, mut left) = (Vec::new(), vec![("/sim".to_owned(), 2)]);
        while let Some((path, ino)) = left.pop() {
            match self.node(ino) {
                Node::Dir(dir) => {
                    left.extend(
                        dir.names.iter().map(|(name, ino)| (format!("{path}/{name}"), *ino)),
                    );
                }
                _ => files.push((path, ino)),
            }
        }
        files.sort();
        files
    }

    /// Whether a power cut would change nothing.
    pub fn is_settled(&self) -> bool {
        self.nodes.values().all(|node| match node {
            Node::Dir(dir) => dir.unsynced.is_empty() && dir.doomed.is_empty(),
            Node::File(content) => content.is_settled(),
            Node::Random => true,
        })
    }

    /// What a failed sync left in the cache alone is gone.
    pub fn forget_clean(&mut self) {
        for node in self.nodes.values_mut() {
            if let Node::File(content) = node {
                content.forget_clean();
            }
        }
    }

    /// Removes a file or a directory with all that is in it, durably.
    pub fn remove(&mut self, path: &str) {
        let Ok((dir, name)) = self.parent(path) else { return };
        if let Ok(dir) = self.dir(dir) {
            dir.names.remove(name);
            dir.durable.remove(name);
            for changes in [&mut dir.unsynced, &mut dir.doomed] {
                changes.retain(|(_, change)| change.iter().all(|(other, _)| other != name));
            }
        }
    }

    /// The power is cut, in one way or another.
    pub fn crash(&mut self, how: Option<Crash>, rng: &mut Rng) {
        let how = |rng: &mut Rng| how.unwrap_or_else(|| rng.pick(&Crash::ALL));
        let style = how(rng);
        for node in self.nodes.values_mut() {
            if let Node::Dir(dir) = node {
                let all = match how(rng) {
                    Crash::Keeps => 0,
                    Crash::Drops => 1,
                    _ => rng.below(4),
                };
                let doomed = std::mem::take(&mut dir.doomed).into_iter();
                for (_, change) in doomed.chain(std::mem::take(&mut dir.unsynced)) {
                    if all == 0 || (all != 1 && rng.one_in(2)) {
                        apply(&mut dir.durable, &change);
                    }
                }
                dir.names = dir.durable.clone();
            }
        }
        let there = self.reachable();
        for (ino, node) in &mut self.nodes {
            if let Node::File(content) = node {
                let style = if rng.one_in(4) { how(rng) } else { style };
                content.crash(style, rng, &self.old);
                if self.old.len() < 64 || !there.contains(ino) {
                    self.old.extend(content.remains(rng));
                }
            }
        }
        self.nodes.retain(|ino, _| there.contains(ino));
        let surplus = self.old.len().saturating_sub(128);
        self.old.drain(..surplus);
    }
}
