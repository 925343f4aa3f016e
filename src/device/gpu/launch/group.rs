//! Grouped launches: problems that one launch solves at once. Most kernels take up to [`MAX_GROUP`] problems of
//! equal sizes, as a `Group` parameter; some take any number of any sizes, as a table (`KernelArg::Members`).
//!
//! Two instructions share a launch if all of these hold:
//!
//! - `autograd::plan::groups` runs them together: they have the same `Fusion::group_key`, neither depends on
//!   the other, their paths to the end of the step have equally many layers, and at most [`MAX_GROUP`] are together;
//!   or they have `Fusion::gathers_forward` or, in backward, `Fusion::gathers_backward`.
//! - `autograd::plan::program` may interleave their launches: they have the same kernels or families of kernels,
//!   launch by launch, and no gradient that one uses is another operand of the other. The launch also comes after every
//!   launch of the group that uses the memory it writes.
//! - [`Launch::join`] accepts the launch: the kernel has a `Group` parameter or a table of members; kernel,
//!   grid (except the members' y and, with a table, x), block and shared memory are equal or, with candidates,
//!   the family is; all other arguments are equal (sizes, slope, storing or adding), except tensor
//!   maps; no two members write to the same place; and a `Group` has at most [`MAX_GROUP`] members.
//!
//! The convolution's products (unless a library computes them), batch norms, max pools, global average pools, activation masks in
//! backward, SE filters, folded filters, cross-entropies, feature losses and statistics losses (forward) can be grouped. Bias gradients
//! with a kernel of their own never are: it has no `Group` parameter.

use super::arg::{KernelArg, MAX_GROUP};
use super::kernel_launch::{Launch, MAX_GRID};
use crate::device::gpu::source::Parameter;
use crate::device::memory::Slot;

impl Launch {
    /// Adds the members of `other`, a launch of the same family, to this launch's group. A launch with
    /// candidates chooses again, from the ones that do what any member asks for. Otherwise the grid grows in
    /// y, whose index is the member, and with a table of members it is as wide in x as the widest of them.
    ///
    /// Returns false and changes nothing if the group would be too large, if anything but the members'
    /// addresses differs, or if two members write to the same place: see [`Launch::writes`].
    pub fn join(&mut self, other: &Launch) -> bool {
        // Launches of one family and equal arguments have candidates with the same tiles, whichever is chosen at
        // the moment.
        let has_table = |l: &Launch| l.args.iter().any(|a| matches!(a, KernelArg::Members(_)));
        let geometry = |l: &Launch| match &l.candidates {
            Some(c) => (c.family, 0, 0, 0, 0),
            None if has_table(l) => (l.kernel.name, 0, l.grid[2], l.block, l.shared),
            None => (l.kernel.name, l.grid[0], l.grid[2], l.block, l.shared),
        };
        if geometry(self) != geometry(other) || self.args.len() != other.args.len() {
            return false;
        }
        let (mut most, mut size) = (0, 0);
        for (mine, theirs) in self.args.iter().zip(&other.args) {
            match (mine, theirs) {
                (KernelArg::Group(_, a), KernelArg::Group(_, b))
                | (KernelArg::Members(a), KernelArg::Members(b)) => {
                    most =
                        if matches!(mine, KernelArg::Group(..)) { MAX_GROUP } else { MAX_GRID[1] as usize };
                    size = a.len() + b.len();
                }
                (KernelArg::TensorMaps(_), KernelArg::TensorMaps(_)) => {}
                (a, b) if a == b => {}
                _ => return false,
            }
        }
        let collides = || other.writes().any(|new| self.writes().any(|old| old == new));
        if size == 0 || size > most || collides() {
            return false;
        }
        for (mine, theirs) in self.args.iter_mut().zip(&other.args) {
            match (mine, theirs) {
                (KernelArg::Group(_, a), KernelArg::Group(_, b))
                | (KernelArg::Members(a), KernelArg::Members(b)) => a.extend(b.iter().cloned()),
                (KernelArg::TensorMaps(a), KernelArg::TensorMaps(b)) => {
                    // The maps of all first operands precede those of all second operands.
                    let second = a.split_off(a.len() / 2);
                    let (b_first, b_second) = b.split_at(b.len() / 2);
                    a.extend(b_first.iter().cloned().chain(second).chain(b_second.iter().cloned()));
                }
                _ => {}
            }
        }
        if let Some(more) = other.candidates.as_ref().filter(|c| c.do_more) {
            self.candidates = Some(more.clone());
        }
        match self.candidates {
            Some(_) => self.choose(),
            None => self.grid = [self.grid[0].max(other.grid[0]), self.grid[1] + other.grid[1], self.grid[2]],
        }
        true
    }
    /// The slots that the members of the group write: those behind the pointers of a `Group` that are not `const`, or the
    /// first cell of each row of a table.
    pub fn writes(&self) -> impl Iterator<Item = Slot> {
        self.args.iter().zip(self.kernel.parameters).flat_map(|(arg, parameter)| {
            let written = if let Parameter::Group(.., written) = parameter { *written } else { 1 };
            let cells = arg.members().iter().flat_map(|member| member.iter().enumerate());
            cells.filter_map(move |(i, cell)| match cell {
                KernelArg::Slot(slot) if written >> i & 1 == 1 => Some(*slot),
                _ => None,
            })
        })
    }
}
