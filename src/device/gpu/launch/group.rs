//! Grouped launches: problems of equal sizes that one launch solves at once.

use super::arg::{KernelArg, MAX_GROUP};
use super::kernel_launch::Launch;
use crate::device::memory::Slot;

impl Launch {
    /// Adds the members of `other`, a launch of the same kernel and sizes, to this launch's group;
    /// `blockIdx.y` tells members apart.
    ///
    /// Returns false and changes nothing if the group would be too large, if anything but the members'
    /// addresses differs, or if two members write to the same place (the first address of each).
    pub fn join(&mut self, other: &Launch) -> bool {
        // Launches with candidates and equal arguments have equal candidates, whichever is chosen at the
        // moment.
        let geometry = |l: &Launch| match &l.candidates {
            Some(c) => (c.all[0].kernel.name, 0, 0, 0, 0),
            None => (l.kernel.name, l.grid[0], l.grid[2], l.block, l.shared),
        };
        if geometry(self) != geometry(other) || self.args.len() != other.args.len() {
            return false;
        }
        let (mut size, mut written) = (0, Vec::new());
        for (mine, theirs) in self.args.iter().zip(&other.args) {
            match (mine, theirs) {
                (KernelArg::Group(_, a), KernelArg::Group(_, b)) => {
                    size = a.len() + b.len();
                    written = a.iter().chain(b).map(|member| &member[0]).collect();
                }
                (KernelArg::TensorMaps(_), KernelArg::TensorMaps(_)) => {}
                (a, b) if a == b => {}
                _ => return false,
            }
        }
        let collides = |i: usize| written[..i].contains(&written[i]);
        if size == 0 || size > MAX_GROUP || (0..size).any(collides) {
            return false;
        }
        for (mine, theirs) in self.args.iter_mut().zip(&other.args) {
            match (mine, theirs) {
                (KernelArg::Group(_, a), KernelArg::Group(_, b)) => a.extend(b.iter().cloned()),
                (KernelArg::TensorMaps(a), KernelArg::TensorMaps(b)) => {
                    // The maps of all first operands precede those of all second operands.
                    let second = a.split_off(a.len() / 2);
                    let (b_first, b_second) = b.split_at(b.len() / 2);
                    a.extend(b_first.iter().cloned().chain(second).chain(b_second.iter().cloned()));
                }
                _ => {}
            }
        }
        match self.candidates {
            Some(_) => self.choose(),
            None => self.grid[1] += other.grid[1],
        }
        true
    }
    /// The slots that the members of the group write to: the first address of each.
    pub fn writes(&self) -> impl Iterator<Item = Slot> {
        let members = self
            .args
            .iter()
            .flat_map(|a| if let KernelArg::Group(_, members) = a { members.as_slice() } else { &[] });
        members.filter_map(|member| if let KernelArg::Slot(slot) = member[0] { Some(slot) } else { None })
    }
}
