//! Grouped launches: problems of equal sizes that one launch solves at once.
//!
//! Two instructions share a launch if all of these hold:
//!
//! - `autograd::plan::groups` runs them together: they have the same `Fusion::group_key`, neither depends on
//!   the other, their paths to the end of the step are equally long, and at most [`MAX_GROUP`] are together.
//! - `autograd::plan::program` may interleave their launches: the names of their kernels are equal, launch by
//!   launch, and no gradient that one uses is another operand of the other. The launch also comes after every
//!   launch of the group that uses the memory it writes.
//! - [`Launch::join`] accepts the launch: the kernel has a `Group` parameter; kernel, grid (except the
//!   members' y), block and shared memory are equal or, with candidates, the first candidates are; all other
//!   arguments are equal (sizes, slope, storing or adding), except tensor maps; all members' first addresses
//!   differ; and the group has at most [`MAX_GROUP`] members.
//!
//! The convolution's forward product and its input gradient can be grouped. Weight and bias gradients never
//! are: their kernels have no `Group` parameter.

use super::arg::{KernelArg, MAX_GROUP};
use super::kernel_launch::Launch;
use crate::device::memory::Slot;

impl Launch {
    /// Adds the members of `other`, a launch of the same kernel and sizes, to this launch's group. A launch
    /// with candidates chooses again. Otherwise the grid grows in y, whose index is the member.
    ///
    /// Returns false and changes nothing if the group would be too large, if anything but the members'
    /// addresses differs, or if two members write to the same place: see [`Launch::writes`].
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
    /// The first slot that each member of the group writes: y or dx. That is enough to see two members that
    /// write to the same place. The other results (pre-activation, mask, channel statistics) are buffers that
    /// the plan places for one instruction alone, while several instructions may add to the same dx.
    pub fn writes(&self) -> impl Iterator<Item = Slot> {
        let members = self
            .args
            .iter()
            .flat_map(|a| if let KernelArg::Group(_, members) = a { members.as_slice() } else { &[] });
        members.filter_map(|member| if let KernelArg::Slot(slot) = member[0] { Some(slot) } else { None })
    }
}
