//! A replay touches no allocator, on any thread: memory is planned once, so a run's memory is what the forecast says, and
//! no step waits for a lock inside the allocator. One test in its own binary, for its allocator counts everybody's calls.

mod common;

use common::Lab;
use dfka_engine::autograd::{Engine, Plan};
use dfka_engine::device::StepState;
use dfka_engine::device::cpu::par::on_worker;
use dfka_engine::pipeline::dual::{self, StageTwo};
use dfka_engine::pipeline::generator::StageOne;
use dfka_engine::pipeline::teachers::Teachers;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if COUNTS.load(SeqCst) {
        CALLS.fetch_add(1, SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(p, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator while `f` runs.
fn calls(f: impl FnOnce()) -> usize {
    CALLS.store(0, SeqCst);
    COUNTS.store(true, SeqCst);
    f();
    COUNTS.store(false, SeqCst);
    CALLS.load(SeqCst)
}

/// After the first replay, many more allocate nothing.
fn replays_allocate_nothing(name: &str, engine: &mut Engine<f32>, plan: &mut Plan<f32>) {
    plan.reserve(engine);
    let mut step = 0;
    let mut replay = |times: usize| {
        for _ in 0..times {
            plan.replay(engine, &StepState { seed: 1, step, lr: [1e-3; 4] });
            step += 1;
        }
    };
    // On a worker, where a run's training is.
    let found = on_worker(|| {
        replay(1);
        calls(|| replay(20))
    });
    assert_eq!(found, 0, "{name}: 20 replays called the allocator {found} times");
}

#[test]
fn a_replay_allocates_nothing() {
    assert!(calls(|| drop(std::hint::black_box(vec![1u8]))) >= 2, "the test does not see an allocation");

    let lab = Lab::new();
    // Large enough to fork.
    let recipes = ["loss.recipe=conditional", "loss.recipe=published", "loss.recipe=balanced"];
    for (recipe, norm) in recipes.iter().zip(["stored", "batch", "folded"]) {
        let norm = format!("student.norm={norm}");
        let spec = lab.spec(&["generator.batch=64", "dual.batch=64", "dual.bank=128", recipe, &norm]);
        let mut engine = Engine::<f32>::default();
        let teachers = Teachers::load(&mut engine.store, &spec.teachers).unwrap();
        let tasks = dual::tasks(&teachers, &[]).unwrap();
        let one = StageOne::new(&mut engine.store, &spec, &teachers, 0);
        let mut stage = one.stage(&mut engine, &spec, &teachers).unwrap();
        replays_allocate_nothing(&format!("generator, {recipe}"), &mut engine, &mut stage.plan);
        let one = [one];
        let two = StageTwo::new(&mut engine.store, &spec, &teachers, tasks, &one).unwrap();
        // Block 3 reads the generator's own features as well.
        for b in [2, 3] {
            let mut stage = two.stage(&mut engine, "block", &spec, &teachers, one.first(), b).unwrap();
            replays_allocate_nothing(&format!("block {b}, {norm}"), &mut engine, &mut stage.plan);
        }
    }
}
