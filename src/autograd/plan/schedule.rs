//! In which order a GPU runs the forward nodes, and which of them together.

use super::absorb::Absorbed;
use super::needs::Needs;
use crate::autograd::tape::Tape;
use crate::device::gpu::launch::MAX_GROUP;
use crate::ops::operator::Signature;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Groups of nodes in an order that keeps every dependency; the nodes of a group are independent of each other and have
/// one [`Operator::launch_key`], so that their launches can be merged.
///
/// Networks that run side by side (teachers; the levels of features, each through the teachers' remaining blocks) end
/// together: whoever has the longest way to the end goes first, counted in nodes with a key, and those with as far to go
/// and the same key go along. A level therefore enters the teachers' blocks when the image's features arrive there.
pub(super) fn groups(tape: &Tape, nodes: &[usize], needs: &Needs, absorbed: &Absorbed) -> Vec<Vec<usize>> {
    let graph = Graph::of(tape, nodes, &needs.signatures, absorbed);
    let keys: Vec<&Option<String>> = nodes.iter().map(|i| &needs.fusions[*i].group_key).collect();
    let mut to_go = vec![0usize; nodes.len()];
    for i in (0..nodes.len()).rev() {
        let behind = graph.after[i].iter().map(|j| to_go[*j]).max().unwrap_or(0);
        to_go[i] = behind + usize::from(keys[i].is_some());
    }

    let mut waits_for = graph.before.clone();
    // Nodes without a key run as soon as they can; the others wait for company, by how far they have to go.
    let (mut now, mut later) = (BTreeSet::new(), BTreeMap::<usize, BTreeSet<usize>>::new());
    let release = |i: usize, now: &mut BTreeSet<usize>, later: &mut BTreeMap<usize, BTreeSet<usize>>| {
        if keys[i].is_none() {
            now.insert(i)
        } else {
            later.entry(to_go[i]).or_default().insert(i)
        };
    };
    (0..nodes.len()).filter(|i| waits_for[*i] == 0).for_each(|i| release(i, &mut now, &mut later));
    let mut order = Vec::new();
    loop {
        let group = if let Some(i) = now.pop_first() {
            vec![i]
        } else if let Some(mut farthest) = later.last_entry() {
            let ready = farthest.get_mut();
            let key = ready.first().and_then(|i| keys[*i].as_ref());
            let group: Vec<usize> =
                ready.iter().copied().filter(|i| keys[*i].as_ref() == key).take(MAX_GROUP).collect();
            ready.retain(|i| !group.contains(i));
            if ready.is_empty() {
                farthest.remove();
            }
            group
        } else {
            return order;
        };
        for i in &group {
            for j in &graph.after[*i] {
                waits_for[*j] -= 1;
                if waits_for[*j] == 0 {
                    release(*j, &mut now, &mut later);
                }
            }
        }
        order.push(group.into_iter().map(|i| nodes[i]).collect());
    }
}

/// Who comes before whom; nodes by their place in the list.
struct Graph {
    after: Vec<Vec<usize>>,
    /// How many nodes each waits for.
    before: Vec<usize>,
}

impl Graph {
    /// A node reads what the last writer before it left, and what an activation reads that it absorbs; who updates a leaf in
    /// place waits for all who read it before.
    fn of(tape: &Tape, nodes: &[usize], signatures: &[Signature], absorbed: &Absorbed) -> Graph {
        let mut graph = Graph { after: vec![Vec::new(); nodes.len()], before: vec![0; nodes.len()] };
        let mut writer: HashMap<usize, usize> = HashMap::new();
        let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, &i) in nodes.iter().enumerate() {
            let node = &tape.nodes[i];
            let updated: Vec<usize> =
                signatures[i].updates.iter().map(|u| tape.root(node.inputs[*u])).collect();
            let mut first: BTreeSet<usize> = BTreeSet::new();
            let more = absorbed.by(i).map_or(&[][..], |a| &tape.nodes[a].inputs[1..]);
            for root in node.inputs.iter().chain(more).map(|v| tape.root(*v)) {
                first.extend(writer.get(&root));
                if updated.contains(&root) {
                    first.extend(readers.remove(&root).unwrap_or_default());
                } else {
                    readers.entry(root).or_default().push(at);
                }
            }
            first.remove(&at);
            writer.extend(
                updated.into_iter().chain(node.outputs.iter().map(|v| tape.root(*v))).map(|r| (r, at)),
            );
            graph.before[at] = first.len();
            first.into_iter().for_each(|f| graph.after[f].push(at));
        }
        graph
    }
}
