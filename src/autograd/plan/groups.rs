//! In which order nodes run, and which of them run together.

use super::needs::Needs;
use crate::autograd::fuse::epilogue::Epilogues;
use crate::autograd::tape::Tape;
use crate::device::gpu::launch::MAX_GROUP;
use crate::ops::operator::Signature;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the nodes of a group do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Their forward.
    Forward,
    /// Their forward once more, right before the backward of their segment (`Tape::begin_segment`).
    Again,
    /// Their backward.
    Backward,
}

/// The nodes of a step in groups, one group after the other. The nodes of a group are independent of each
/// other, and have the same `Fusion::group_key`, or gather in forward or in backward (`Fusion::gathers_forward`,
/// `Fusion::gathers_backward`), so that a GPU can merge their launches.
///
/// The index of a group is the time at which its nodes run.
pub(crate) struct Groups {
    turns: Vec<(Pass, Vec<usize>)>,
    /// By node.
    runs_again: Vec<bool>,
}

impl Groups {
    /// Forward in an order that keeps every dependency; without keys, as on the CPU, that is the order of
    /// the tape. Backward in the reverse order, without the nodes that no gradient flows through. Losses that gather wait in
    /// forward alone: if the backward of a hundred statistics losses waited, all their gradients would be in memory at once.
    /// Feature losses of equal sizes, a few of which there are, run backward together. Folded filters gather in backward too,
    /// after all others. Until then the gradients of all folded filters are in memory beside those of the trained tensors:
    /// 170 MB for a ResNet-101.
    ///
    /// The nodes of a segment stay together, and so do those between two segments.
    pub(crate) fn of(tape: &Tape, needs: &Needs, epilogues: &Epilogues) -> Groups {
        let segment = |i: &usize| tape.nodes[*i].segment;
        let runs_backward = |i: &usize| needs.runs_backward(tape, *i);
        let (mut turns, mut late) = (Vec::new(), Vec::new());
        let mut runs_again = vec![false; tape.nodes.len()];
        for nodes in needs.live_nodes().chunk_by(|a, b| segment(a) == segment(b)) {
            let graph = Graph::of(tape, nodes, &needs.signatures, epilogues);
            let keys = nodes.iter().map(|i| needs.fusions[*i].group_key.as_deref()).collect();
            let after = graph.after.clone();
            let is_layer = |at: usize| needs.fusions[nodes[at]].is_layer;
            let in_order = graph.groups(keys, is_layer);
            let named = |g: &Vec<usize>| -> Vec<usize> { g.iter().map(|at| nodes[*at]).collect() };
            let gathers = |at: usize| needs.fusions[nodes[at]].gathers_forward;
            let backward =
                in_order.iter().rev().map(|g| named(g).into_iter().filter(runs_backward).collect());
            let mut backward: Vec<_> = backward.map(|g: Vec<usize>| (Pass::Backward, g)).collect();
            let forward: Vec<_> = gathered(in_order, &after, gathers).iter().map(named).collect();
            turns.extend(forward.iter().map(|g| (Pass::Forward, g.clone())));
            if segment(&nodes[0]).is_some() && nodes.iter().any(runs_backward) {
                nodes.iter().for_each(|i| runs_again[*i] = true);
                backward.splice(0..0, forward.into_iter().map(|g| (Pass::Again, g)));
            }
            late.push(backward);
        }
        let mut last = Vec::new();
        for (pass, mut group) in late.into_iter().rev().flatten() {
            if pass == Pass::Backward {
                last.extend(group.extract_if(.., |i| needs.runs_last[*i]));
            }
            turns.extend(Some((pass, group)).filter(|(_, g)| !g.is_empty()));
        }
        turns.extend(Some((Pass::Backward, last)).filter(|(_, g)| !g.is_empty()));
        Groups { turns, runs_again }
    }
    /// The nodes of a pass, each with its time.
    fn nodes(&self, pass: Pass) -> impl Iterator<Item = (usize, usize)> {
        let turns = self.turns.iter().enumerate().filter(move |(_, (p, _))| *p == pass);
        turns.flat_map(|(t, (_, group))| group.iter().map(move |i| (t, *i)))
    }
    /// The nodes that run forward, each with its time.
    pub(crate) fn forward_nodes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.nodes(Pass::Forward)
    }
    /// The nodes that run forward a second time, each with that time.
    pub(crate) fn again_nodes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.nodes(Pass::Again)
    }
    /// The nodes that run backward, each with its time.
    pub(crate) fn backward_nodes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.nodes(Pass::Backward)
    }
    /// All nodes in the order in which they run.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (usize, Pass, usize)> {
        let turns = self.turns.iter().enumerate();
        turns.flat_map(|(t, (pass, group))| group.iter().map(move |i| (t, *pass, *i)))
    }
    /// Whether a node runs forward twice.
    pub(crate) fn runs_again(&self, i: usize) -> bool {
        self.runs_again[i]
    }
    /// The nodes that run backward after this time, in order.
    pub(crate) fn backward_after(&self, time: usize) -> impl Iterator<Item = usize> {
        let turns = self.turns.iter().skip(time + 1).filter(|(pass, _)| *pass == Pass::Backward);
        turns.flat_map(|(_, group)| group.iter().copied())
    }
    /// The first time after forward.
    pub(crate) fn forward_end(&self) -> usize {
        self.turns.iter().take_while(|(pass, _)| *pass == Pass::Forward).count()
    }
    /// The first time after backward.
    pub(crate) fn end(&self) -> usize {
        self.turns.len()
    }
    #[cfg(test)]
    pub(crate) fn of_pass(&self, pass: Pass) -> Vec<Vec<usize>> {
        self.turns.iter().filter(|(p, _)| *p == pass).map(|(_, g)| g.clone()).collect()
    }
}

/// The groups with the nodes that gather held back, in one group, until a node comes that waits for one of
/// them. `after`: the nodes that wait for each.
fn gathered(
    groups: Vec<Vec<usize>>,
    after: &[Vec<usize>],
    gathers: impl Fn(usize) -> bool,
) -> Vec<Vec<usize>> {
    let (mut all, mut held) = (Vec::new(), Vec::<usize>::new());
    for group in groups {
        let is_awaited = |held: &usize| after[*held].iter().any(|at| group.contains(at));
        if held.iter().any(is_awaited) {
            all.push(std::mem::take(&mut held));
        }
        if group.iter().all(|at| gathers(*at)) {
            held.extend(group);
        } else {
            all.push(group);
        }
    }
    all.extend(Some(held).filter(|g| !g.is_empty()));
    all
}

/// Which nodes wait for which, by their index in a list of nodes.
struct Graph {
    /// The nodes that wait for each.
    after: Vec<Vec<usize>>,
    /// How many nodes each waits for.
    waits_for: Vec<usize>,
}

impl Graph {
    /// A node waits for the last node before it that writes one of its operands, or an operand of the
    /// activation in its epilogue. A node that updates a leaf in place also waits for all nodes before it
    /// that read the leaf, and one that exchanges data with other ranks for the one before it that does: ranks with
    /// other numbers of teachers would have another order.
    fn of(tape: &Tape, nodes: &[usize], signatures: &[Signature], epilogues: &Epilogues) -> Graph {
        let mut graph = Graph { after: vec![Vec::new(); nodes.len()], waits_for: vec![0; nodes.len()] };
        let mut writer: HashMap<usize, usize> = HashMap::new();
        let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut last_exchange: Option<usize> = None;
        for (at, &i) in nodes.iter().enumerate() {
            let node = &tape.nodes[i];
            let updated: Vec<usize> =
                signatures[i].updates.iter().map(|u| tape.root(node.inputs[*u])).collect();
            let mut before: BTreeSet<usize> = BTreeSet::new();
            let fused = epilogues.activation_of(i).map_or(&[][..], |a| &tape.nodes[a].inputs[1..]);
            for root in node.inputs.iter().chain(fused).map(|v| tape.root(*v)) {
                before.extend(writer.get(&root));
                if updated.contains(&root) {
                    before.extend(readers.remove(&root).unwrap_or_default());
                } else {
                    readers.entry(root).or_default().push(at);
                }
            }
            if signatures[i].exchanges {
                before.extend(last_exchange.replace(at));
            }
            before.remove(&at);
            let outputs = node.outputs.iter().map(|v| tape.root(*v));
            writer.extend(updated.into_iter().chain(outputs).map(|root| (root, at)));
            graph.waits_for[at] = before.len();
            before.into_iter().for_each(|b| graph.after[b].push(at));
        }
        graph
    }

    /// All nodes, in groups of equal keys.
    ///
    /// Networks that run side by side end together: teachers, and the levels of features, each of which
    /// passes through the teachers' remaining blocks. The node with the longest path to the end goes first,
    /// and the nodes with the same key and an equally long path go with it; the length of a path is its
    /// number of layers (`Fusion::is_layer`). A level of features therefore enters a teacher's blocks when the image's
    /// features arrive there, and a student's blocks run with those of its teachers, although a `SeFilter` follows the
    /// student's. At equal lengths, nodes that are no layers go first: layers wait for them.
    fn groups(mut self, keys: Vec<Option<&str>>, is_layer: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let mut distance = vec![0usize; keys.len()];
        for i in (0..keys.len()).rev() {
            let behind = self.after[i].iter().map(|j| distance[*j]).max().unwrap_or(0);
            distance[i] = behind + usize::from(is_layer(i));
        }
        let is_layer = (0..keys.len()).map(is_layer).collect();
        let mut ready = Ready { keys, is_layer, distance, single: BTreeSet::new(), grouped: BTreeMap::new() };
        (0..self.after.len()).filter(|i| self.waits_for[*i] == 0).for_each(|i| ready.add(i));
        let mut groups = Vec::new();
        while let Some(group) = ready.next_group() {
            for j in group.iter().flat_map(|i| &self.after[*i]) {
                self.waits_for[*j] -= 1;
                if self.waits_for[*j] == 0 {
                    ready.add(*j);
                }
            }
            groups.push(group);
        }
        groups
    }
}

/// The nodes that wait for nothing.
struct Ready<'a> {
    keys: Vec<Option<&'a str>>,
    is_layer: Vec<bool>,
    /// Layers on the longest path from each node to the end, itself included.
    distance: Vec<usize>,
    /// Nodes without a key: they run as soon as they can.
    single: BTreeSet<usize>,
    /// Nodes with a key, by distance: they run when no single node is ready, so that groups are larger.
    grouped: BTreeMap<usize, BTreeSet<usize>>,
}

impl Ready<'_> {
    fn add(&mut self, i: usize) {
        if self.keys[i].is_none() {
            self.single.insert(i);
        } else {
            self.grouped.entry(self.distance[i]).or_default().insert(i);
        }
    }
    fn next_group(&mut self) -> Option<Vec<usize>> {
        if let Some(i) = self.single.pop_first() {
            return Some(vec![i]);
        }
        let mut farthest = self.grouped.last_entry()?;
        let ready = farthest.get_mut();
        let first = ready.iter().find(|i| !self.is_layer[**i]).or(ready.first());
        let key = first.and_then(|i| self.keys[*i]);
        let group: Vec<usize> =
            ready.iter().copied().filter(|i| self.keys[*i] == key).take(MAX_GROUP).collect();
        ready.retain(|i| !group.contains(i));
        if ready.is_empty() {
            farthest.remove();
        }
        Some(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::plan::step::Step;
    use crate::autograd::tape::{Learn, Value};
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::batch_norm::{BatchNorm, Stats};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::fold_norm::FoldNorm;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::ops::layers::se_filter::SeFilter;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::ops::losses::statistics_loss::StatisticsLoss;
    use crate::ops::losses::weighted_sum::WeightedSum;
    use crate::tensor::{Elem, Shape};

    /// Networks of `depths` layers, recorded one after the other on the same rows, and the sum of their
    /// losses.
    fn networks(depths: &[usize]) -> (Tape, Value) {
        let mut store = Store::<f32>::default();
        let x = store.add("x", Shape::rows(2, 8));
        let mut t = Tape::default();
        let x = t.leaf(&store, x, Learn::Frozen);
        let mut losses = Vec::new();
        for (n, depth) in depths.iter().enumerate() {
            let mut y = x;
            for layer in 0..*depth {
                let w = store.add(&format!("{n}.{layer}"), Shape::new(8, 1, 1, 8));
                let w = t.leaf(&store, w, Learn::Trainable);
                y = t.apply(Conv2d::new(1, 0), &[y, w]).unwrap();
            }
            losses.push(t.apply(ActivationLoss { mean_over_features: true }, &[y]).unwrap());
        }
        let loss = t.apply(WeightedSum { weights: vec![1.0; depths.len()] }, &losses).unwrap();
        (t, loss)
    }

    fn groups(tape: &Tape, loss: Option<Value>, target: Option<Target>) -> Groups {
        Step::of::<f32>(tape, loss, target.as_ref()).unwrap().groups
    }

    #[test]
    fn equal_layers_of_two_networks_run_together_on_a_gpu() {
        // Nodes 0 and 1 are the first network's layers and 2 its loss; 3, 4 and 5 the second's; 6 is the
        // sum.
        let (t, loss) = networks(&[2, 2]);
        let gpu = groups(&t, Some(loss), Some(Target::h200(Elem::F32)));
        assert_eq!(gpu.of_pass(Pass::Forward), [vec![0, 3], vec![1, 4], vec![2], vec![5], vec![6]]);
        assert_eq!(gpu.of_pass(Pass::Backward), [vec![6], vec![5], vec![2], vec![1, 4], vec![0, 3]]);
        assert_eq!(gpu.backward_nodes().last(), Some((9, 3)));
        assert_eq!(gpu.backward_after(8).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn a_shorter_network_starts_later_so_that_both_end_together() {
        let (t, loss) = networks(&[1, 2]);
        let gpu = groups(&t, Some(loss), Some(Target::h200(Elem::F32)));
        assert_eq!(gpu.of_pass(Pass::Forward), [vec![2], vec![0, 3], vec![1], vec![4], vec![5]]);
    }

    #[test]
    fn a_group_has_at_most_as_many_nodes_as_a_grouped_launch_has_members() {
        let (t, loss) = networks(&[1; MAX_GROUP + 1]);
        let gpu = groups(&t, Some(loss), Some(Target::h200(Elem::F32)));
        let sizes: Vec<usize> = gpu.of_pass(Pass::Forward).iter().map(Vec::len).filter(|n| *n > 1).collect();
        assert_eq!(sizes, [MAX_GROUP]);
    }

    /// A layer, a statistics loss on its output, a second layer, a statistics loss on that, and their sum.
    fn watched() -> (Tape, Value) {
        let mut store = Store::<f32>::default();
        let x = store.add("x", Shape::rows(2, 8));
        let [mean, std] = ["mean", "std"].map(|n| store.add(n, Shape::vector(8)));
        let mut t = Tape::default();
        let [mean, std] = [mean, std].map(|id| t.leaf(&store, id, Learn::Frozen));
        let mut y = t.leaf(&store, x, Learn::Frozen);
        let mut losses = Vec::new();
        for name in ["a", "b"] {
            let w = store.add(name, Shape::new(8, 1, 1, 8));
            let w = t.leaf(&store, w, Learn::Trainable);
            y = t.apply(Conv2d::new(1, 0), &[y, w]).unwrap();
            losses.push(t.apply(StatisticsLoss { eps: 1e-8 }, &[y, mean, std]).unwrap());
        }
        let loss = t.apply(WeightedSum { weights: vec![1.0; 2] }, &losses).unwrap();
        (t, loss)
    }

    #[test]
    fn statistics_losses_wait_for_each_other_in_forward_alone() {
        let (t, loss) = watched();
        let gpu = groups(&t, Some(loss), Some(Target::h200(Elem::F32)));
        assert_eq!(gpu.of_pass(Pass::Forward), [vec![0], vec![2], vec![1, 3], vec![4]]);
        assert_eq!(gpu.of_pass(Pass::Backward), [[4], [3], [2], [1], [0]]);
    }

    /// Two layers on a map, each with its batch norm folded, and a `SeFilter` behind them if `is_filtered`; then a loss.
    fn folded(store: &mut Store<f32>, t: &mut Tape, name: &str, is_filtered: bool) -> Value {
        let mut leaf = |part: &str, shape, learn| {
            let id = store.add(&format!("{name}.{part}"), shape);
            t.leaf(store, id, learn)
        };
        let mut y = leaf("x", Shape::new(2, 4, 4, 8), Learn::Frozen);
        let layers = ["a", "b"].map(|layer| {
            let w = leaf(&format!("{layer}.w"), Shape::new(8, 1, 1, 8), Learn::Trainable);
            let vectors = ["gamma", "beta", "mean", "var"];
            let vectors = vectors.map(|v| leaf(&format!("{layer}.{v}"), Shape::vector(8), Learn::Frozen));
            [&[w], &vectors[..]].concat()
        });
        let weights = [Shape::rows(2, 8), Shape::vector(2), Shape::rows(8, 2), Shape::vector(8)];
        let weights = weights.map(|s| leaf(&format!("filter {s}"), s, Learn::Frozen));
        for operands in layers {
            let filter = t.apply_all(FoldNorm { eps: 1e-5 }.into(), &operands).unwrap();
            y = t.apply(Conv2d { bias: true, ..Conv2d::new(1, 0) }, &[y, filter[0], filter[1]]).unwrap();
        }
        if is_filtered {
            y = t.apply(SeFilter { top: 2.0 }, &[&[y], &weights[..]].concat()).unwrap();
        }
        let y = t.apply(GlobalAvgPool, &[y]).unwrap();
        t.apply(ActivationLoss { mean_over_features: true }, &[y]).unwrap()
    }

    #[test]
    fn folded_filters_gather_before_the_first_layer_and_behind_the_last_backward() {
        let (mut store, mut t) = (Store::default(), Tape::default());
        let loss = folded(&mut store, &mut t, "net", false);
        // Nodes 0 and 2 are the folds, 1 and 3 the layers, 4 the mean over pixels, 5 the loss.
        let gpu = groups(&t, Some(loss), Some(Target::h200(Elem::F32)));
        assert_eq!(gpu.of_pass(Pass::Forward), [vec![0, 2], vec![1], vec![3], vec![4], vec![5]]);
        assert_eq!(gpu.of_pass(Pass::Backward), [vec![5], vec![4], vec![3], vec![1], vec![2, 0]]);
    }

    #[test]
    fn a_filter_behind_one_network_does_not_keep_its_layers_from_running_with_anothers() {
        let (mut store, mut t) = (Store::default(), Tape::default());
        let losses = [("net", false), ("filtered", true)].map(|(n, f)| folded(&mut store, &mut t, n, f));
        let loss = t.apply(WeightedSum { weights: vec![1.0; 2] }, &losses).unwrap();
        // Nodes 6 to 12 are those of the second network, 10 its filter.
        let gpu = groups(&t, Some(loss), Some(Target::h200(Elem::F32)));
        let forward = gpu.of_pass(Pass::Forward);
        assert!(forward.contains(&vec![1, 7]) && forward.contains(&vec![3, 9]), "{forward:?}");
    }

    #[test]
    fn the_cpu_runs_nodes_one_by_one_in_the_order_of_the_tape() {
        let (t, loss) = networks(&[1, 2]);
        let cpu = groups(&t, Some(loss), None);
        assert_eq!(cpu.of_pass(Pass::Forward).concat(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(cpu.of_pass(Pass::Backward).concat(), [5, 4, 3, 2, 1, 0]);
        assert!(cpu.turns.iter().all(|(_, g)| g.len() == 1));
    }

    #[test]
    fn a_node_that_updates_a_leaf_waits_for_the_nodes_that_read_it_before() {
        let mut store = Store::<f32>::default();
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let norm = ["gamma", "beta", "mean", "var"].map(|n| store.add(n, Shape::vector(8)));
        let mut t = Tape::default();
        let x = t.leaf(&store, x, Learn::Frozen);
        let [a, b, mean, d] = norm.map(|n| t.leaf(&store, n, Learn::Frozen));
        // Node 0 reads the running mean, node 1 updates it, node 2 reads it again.
        let before = t.apply(Activation(Act::Tanh), &[mean]).unwrap();
        let bn = BatchNorm { stats: Stats::Batch, act: Act::None, momentum: 0.1, eps: 1e-5 };
        t.apply(bn, &[x, a, b, mean, d]).unwrap();
        let after = t.apply(Activation(Act::Tanh), &[mean]).unwrap();
        t.output(before);
        t.output(after);
        let needs = Needs::of(&t, None, None).unwrap();
        let graph = Graph::of(&t, &[0, 1, 2], &needs.signatures, &Epilogues::default());
        assert_eq!(graph.after, [vec![1], vec![2], vec![]]);
        assert_eq!(graph.waits_for, [0, 1, 1]);
    }
}
