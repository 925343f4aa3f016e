//! Elementwise activations, with the addition of a residual in front.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::cpu::vectorised;
use crate::device::gpu;
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::{ActMask, Fusion};
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::operands::{Io, Operands, Write, store_or_add};
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_operands, expect_shape};
use crate::tensor::{Elem, Real, Shape};

/// An elementwise function. Convolutions and batch norms end with one, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// The identity.
    None,
    /// `max(v, 0)`; NaN stays NaN.
    Relu,
    /// `v` above zero, and below it `v` times this slope.
    LeakyRelu(f32),
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-v)`.
    Sigmoid,
}

impl Act {
    /// The function's value at `v`.
    #[inline(always)]
    pub fn apply<R: Real>(self, v: R) -> R {
        match self {
            Act::None => v,
            // Not `max`, which would turn NaN into 0: a diverged network would look like a dead one.
            Act::Relu => {
                if v < R::ZERO {
                    R::ZERO
                } else {
                    v
                }
            }
            Act::LeakyRelu(slope) => {
                if v > R::ZERO {
                    v
                } else {
                    v * R::of(f64::from(slope))
                }
            }
            Act::Tanh => v.tanh(),
            Act::Sigmoid => sigmoid(v),
        }
    }

    /// Applies the function to every element, in place.
    pub fn apply_to<R: Real>(self, values: &mut [R]) {
        let Some(slope) = self.step_slope() else {
            return vectorised(
                #[inline(always)]
                || {
                    let act = self;
                    values.iter_mut().for_each(|v| *v = act.apply(*v));
                },
            );
        };
        if self == Act::None {
            return;
        }
        let slope = R::of(slope);
        vectorised(
            #[inline(always)]
            || values.iter_mut().for_each(|v| *v = if *v > R::ZERO { *v } else { *v * slope }),
        );
    }

    /// The derivative, from the function's value `y`: for each of these functions, the value determines it.
    #[inline(always)]
    pub fn slope<R: Real>(self, y: R) -> R {
        match self {
            Act::None => R::ONE,
            Act::Relu => {
                if y > R::ZERO {
                    R::ONE
                } else {
                    R::ZERO
                }
            }
            Act::LeakyRelu(slope) => {
                if y > R::ZERO {
                    R::ONE
                } else {
                    R::of(f64::from(slope))
                }
            }
            Act::Tanh => R::ONE - y * y,
            Act::Sigmoid => y * (R::ONE - y),
        }
    }

    /// The slope for non-positive inputs, if the function is piecewise linear, so that one bit determines the
    /// derivative.
    pub fn step_slope(self) -> Option<f64> {
        match self {
            Act::None => Some(1.0),
            Act::Relu => Some(0.0),
            Act::LeakyRelu(slope) => Some(f64::from(slope)),
            Act::Tanh | Act::Sigmoid => None,
        }
    }
}

/// The layout of `Act` in kernels/lib/activation.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
pub struct DeviceAct {
    kind: i32,
    below: f32,
}

const _: () = assert!(size_of::<DeviceAct>() == 8);

impl From<Act> for gpu::launch::KernelArg {
    fn from(act: Act) -> Self {
        let kind = match act {
            Act::None | Act::Relu | Act::LeakyRelu(_) => 0,
            Act::Tanh => 1,
            Act::Sigmoid => 2,
        };
        let below = act.step_slope().unwrap_or(0.0) as f32;
        gpu::launch::KernelArg::structure("Act", &DeviceAct { kind, below })
    }
}

/// `1 / (1 + e^-v)`, without overflow on either side.
#[inline(always)]
pub fn sigmoid<R: Real>(v: R) -> R {
    let e = (-v.abs()).exp();
    let small = e / (R::ONE + e);
    if v > R::ZERO { R::ONE - small } else { small }
}

/// `y = act(x)`, or `y = act(x + residual)` with two operands.
///
/// Shapes: x, residual, y `[n, h, w, c]`.
/// Source: ResNet's block end (He et al. 2016, eq. 1); sigmoid as docs/method.md 1 and 2 use it.
/// Backward: `dx = dresidual = dy * act'`, from the saved output. On a GPU, a piecewise linear activation
/// saves one bit per element instead.
/// Errors: operands of different shapes.
/// Cost: no multiply-adds; reads 1 or 2 tensors, writes 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation(pub Act);

impl Operator for Activation {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        if args.len() != 2 {
            expect_operands("activation", args, &["x"])?;
        }
        for a in args {
            expect_shape("activation", "residual", args[0].shape, a.shape)?;
        }
        Ok(Signature {
            outputs: vec![args[0].shape],
            keeps_outputs: self.0 != Act::None,
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, y) = (io.x(0), io.y(0));
        let residual = (io.inputs() == 2).then(|| io.x(1));
        let items = y.len();
        for_rows(Rows::new(y, items), 1, &|first, part: Rows<R>| {
            let x = &x[first..][..part.data.len()];
            match residual {
                None => part.data.copy_from_slice(x),
                Some(r) => {
                    let sums = x.iter().zip(&r[first..]);
                    part.data.iter_mut().zip(sums).for_each(|(y, (x, r))| *y = *x + *r);
                }
            }
            self.0.apply_to(part.data);
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let dy = io.dy0();
        let y = (self.0 != Act::None).then(|| io.kept_y(0));
        for i in 0..io.inputs() {
            let Some(dx) = io.dx(i) else { continue };
            let (write, items) = (dx.write, dx.data.len());
            for_rows(Rows::new(dx.data, items), 1, &|first, part: Rows<R>| {
                let range = first..first + part.data.len();
                let dy = &dy[range.clone()];
                let Some(y) = y.map(|y| &y[range]) else {
                    return part.data.iter_mut().zip(dy).for_each(|(dx, dy)| store_or_add(write, dx, *dy));
                };
                vectorised(
                    #[inline(always)]
                    || {
                        let (write, act) = (write, self.0);
                        for (dx, (y, dy)) in part.data.iter_mut().zip(y.iter().zip(dy)) {
                            store_or_add(write, dx, *dy * act.slope(*y));
                        }
                    },
                );
            });
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y) = (l.x(0), l.y(0));
        let residual = (l.inputs() == 2).then(|| l.x(1));
        if let Some(r) = residual {
            l.expect_same("residual", x, r)?;
        }
        l.expect_same("y", x, y)?;
        if l.is_fused_into_producer() {
            return Ok(());
        }
        if self.masked_slope().is_some() && l.saves() {
            let (pixels, c) = (l.shape(0).elems() / l.shape(0).c(), l.shape(0).c());
            let args = [
                y.into(),
                l.saved(0).into(),
                x.into(),
                residual.into(),
                (pixels as i64).into(),
                (c as i32).into(),
                self.0.into(),
            ];
            let blocks = l.blocks_for(pixels * c.div_ceil(8), THREADS as usize);
            return l.launch(format!("activation_step_fwd<{}>", x.elem), blocks, THREADS, 0, args);
        }
        let (elements, name) = (l.shape(0).elems(), format!("activation_fwd<{}>", x.elem));
        let args = [y.into(), x.into(), residual.into(), (elements as i64).into(), self.0.into()];
        l.launch(name, blocks(l, elements, x.elem), THREADS, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let (dy, elements) = (l.dy0(), l.shape(0).elems());
        if let Some(slope) = self.masked_slope() {
            let (dx, dresidual) = (l.dx(0), if l.inputs() == 2 { l.dx(1) } else { None });
            let mask = (!l.dy_is_masked()).then(|| l.saved(0));
            let c = l.shape(0).c();
            return step_backward(l, dx, dresidual, (dy, mask), [elements / c, c], slope);
        }
        let y = (self.0 != Act::None).then(|| l.y(0));
        for i in 0..l.inputs() {
            let Some((dx, write)) = l.dx(i) else { continue };
            let args =
                [dx.into(), dy.into(), y.into(), (elements as i64).into(), self.0.into(), write.into()];
            l.launch(format!("activation_bwd<{}>", dx.elem), blocks(l, elements, dx.elem), THREADS, 0, args)?;
        }
        Ok(())
    }

    fn device_extents(&self, args: &[OperandInfo], _: &Target, signature: &mut Signature) {
        if self.masked_slope().is_some() && args.iter().any(|a| a.needs_grad) {
            let (elements, c) = (args[0].shape.elems(), args[0].shape.c());
            signature.saved = vec![Extent::Bytes(elements / c * c.div_ceil(8))];
            signature.keeps_outputs = false;
        }
    }
    fn fusion(&self, inputs: &[Shape], _: Shape, _: &Target) -> Fusion {
        let slope = self.masked_slope();
        Fusion {
            act_mask: slope.map(|slope| ActMask { slope, scratch: None }),
            is_fusable_activation: slope.is_some(),
            copies_grad: slope.is_some(),
            grad_alias: self.0.step_slope().map(|_| inputs.len() - 1),
            ..Fusion::default()
        }
    }

    /// The neighbours can compute it while they have the element at hand. They must read the residual, and
    /// the residual's gradient if it is added to.
    fn minimal_bytes(&self, o: &Operands) -> u64 {
        if !o.is_backward() {
            return o.inputs.get(1).map_or(0, |residual| residual.bytes as u64);
        }
        let added = o.input_grads.get(1).copied().flatten().filter(|(_, write)| *write == Write::Add);
        added.map_or(0, |(slot, _)| slot.bytes as u64)
    }
}

impl Activation {
    /// The slope for non-positive inputs, if a GPU saves a bit per element for backward instead of `y`.
    fn masked_slope(&self) -> Option<f32> {
        self.0.step_slope().filter(|_| self.0 != Act::None).map(|s| s as f32)
    }
}

/// Launches `dx = dresidual = dy * act'` for those of the two gradients that are needed. `mask` holds the
/// bits of an activation with this slope; without it, `act' = 1`. Shapes: all `[pixels, c]`.
pub(super) fn step_backward(
    l: &mut Launches,
    dx: Option<(DeviceTensor, Write)>,
    dresidual: Option<(DeviceTensor, Write)>,
    (dy, mask): (DeviceTensor, Option<DeviceTensor>),
    [pixels, c]: [usize; 2],
    slope: f32,
) -> Result<()> {
    if dx.is_none() && dresidual.is_none() {
        return Ok(());
    }
    let write = |to: Option<(_, Write)>| to.map_or(Write::Set, |(_, write)| write);
    l.launch(
        format!("activation_step_bwd<{}>", dy.elem),
        l.blocks_for(pixels * c.div_ceil(8), THREADS as usize),
        THREADS,
        0,
        [
            KernelArg::group_of_one(
                "StepBackward",
                [dx.map(|(t, _)| t).into(), dresidual.map(|(t, _)| t).into(), dy.into(), mask.into()],
            ),
            (pixels as i64).into(),
            (c as i32).into(),
            slope.into(),
            write(dx).into(),
            write(dresidual).into(),
        ],
    )
}

/// Blocks of a loop in which every thread takes 16 bytes at a time.
fn blocks(l: &Launches, elements: usize, elem: Elem) -> u32 {
    l.blocks_for(elements, THREADS as usize * 16 / elem.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};
    use crate::tensor::Shape;

    #[test]
    fn passes_the_op_checks() {
        for act in [Act::None, Act::Relu, Act::LeakyRelu(0.2), Act::Tanh, Act::Sigmoid] {
            for shape in [Shape::new(1, 1, 1, 1), Shape::new(3, 5, 7, 11), Shape::new(2, 16, 33, 8)] {
                let f = move |v: f64| match act {
                    Act::None => v,
                    Act::Relu => v.max(0.0),
                    Act::LeakyRelu(s) => v.max(f64::from(s) * v),
                    Act::Tanh => v.tanh(),
                    Act::Sigmoid => 1.0 / (1.0 + (-v).exp()),
                };
                check(
                    Case::new(Activation(act), &[shape])
                        .reference(move |x| vec![x[0].iter().map(|v| f(*v)).collect()]),
                );
                check(
                    Case::new(Activation(act), &[shape, shape])
                        .reference(move |x| vec![x[0].iter().zip(&x[1]).map(|(a, b)| f(a + b)).collect()]),
                );
            }
        }
    }

    #[test]
    fn a_nan_passes_every_activation() {
        for act in [Act::None, Act::Relu, Act::LeakyRelu(0.2), Act::Tanh, Act::Sigmoid] {
            assert!(act.apply(f32::NAN).is_nan(), "{act:?}");
        }
    }

    #[test]
    fn refuses_a_residual_of_another_shape() {
        let arg = |c| OperandInfo { shape: Shape::vector(c), needs_grad: false };
        let e = Activation(Act::Relu).signature(&[arg(3), arg(4)]).unwrap_err().to_string();
        assert_eq!(e, "activation: residual: expected [1, 1, 1, 3], found [1, 1, 1, 4]");
    }
}
