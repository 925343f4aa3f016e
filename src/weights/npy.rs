//! The npy format: one array, as in every entry of an npz.

use std::io::Read;

use half::f16;
use npyz::{DType, NpyHeader, Order, TypeChar};

use super::common::{CHUNK, element_count};

/// The most bytes of an npy header, which is one line of text. numpy refuses more than 10,000 by default.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// An npy header whose shape is known to fit in memory addresses.
#[derive(Debug)]
pub struct Header {
    dtype: DType,
    pub shape: Vec<usize>,
    fortran: bool,
}

impl Header {
    /// Errors: a type that is not a float that [`Body::floats`] reads.
    pub fn expect_floats(&self) -> Result<(), String> {
        float_kind(&self.dtype).map(|_| ())
    }

    /// Reads a header; returns it and its size in bytes.
    pub fn read(r: &mut dyn Read) -> Result<(Header, u64), String> {
        let short = |_| "expected an npy header, found the end of the entry".to_string();
        let mut bytes = vec![0u8; 8];
        r.read_exact(&mut bytes).map_err(short)?;
        if &bytes[..6] != b"\x93NUMPY" {
            return Err("expected an npy array, found other bytes".into());
        }
        let length_bytes = match bytes[6] {
            1 => 2,
            2 | 3 => 4,
            v => return Err(format!("expected npy version 1, 2 or 3, found {v}")),
        };
        bytes.resize(8 + length_bytes, 0);
        r.read_exact(&mut bytes[8..]).map_err(short)?;
        let length = bytes[8..].iter().rev().fold(0usize, |a, &b| a << 8 | b as usize);
        if length > MAX_HEADER_BYTES {
            return Err(format!(
                "expected an npy header of at most {MAX_HEADER_BYTES} bytes, found {length}"
            ));
        }
        let start = bytes.len();
        bytes.resize(start + length, 0);
        r.read_exact(&mut bytes[start..]).map_err(short)?;
        check_header_text(&bytes[start..])?;
        let h = NpyHeader::from_reader(&bytes[..]).map_err(|e| format!("malformed npy header: {e}"))?;
        let shape: Option<Vec<usize>> = h.shape().iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape = shape.ok_or("the shape does not fit this machine's addresses")?;
        Ok((Header { dtype: h.dtype(), shape, fortran: h.order() == Order::Fortran }, bytes.len() as u64))
    }
}

/// Refuses what makes npyz's header parser panic, overflow or recurse without end: anything but ASCII,
/// escapes in strings, deep nesting, numbers that are not plain decimals, and dimensions whose product
/// overflows.
fn check_header_text(text: &[u8]) -> Result<(), String> {
    let bad = |what: &str| Err(format!("malformed npy header: {what}"));
    let (mut quote, mut depth, mut number, mut product) = (None, 0u32, None::<u64>, 1u64);
    for &b in text {
        if !b.is_ascii() || b == b'\\' {
            return bad("non-ASCII text or an escape");
        }
        if let Some(q) = quote {
            if b == q {
                quote = None;
            }
            continue;
        }
        if b.is_ascii_digit() {
            let n = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add((b - b'0') as u64));
            let Some(n) = n else { return bad("a dimension beyond 64 bits") };
            number = Some(n);
            continue;
        }
        if let Some(n) = number.take() {
            match product.checked_mul(n.max(1)) {
                Some(p) if p <= i64::MAX as u64 => product = p,
                Some(_) | None => return bad("a shape whose element count overflows"),
            }
        }
        match b {
            b'\'' | b'"' => quote = Some(b),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' | b' ' | b'\n' => {}
            b if b"TrueFals".contains(&b) => {}
            other => return bad(&format!("unexpected {:?}", other as char)),
        }
        if depth > 8 {
            return bad("brackets nested too deeply");
        }
    }
    Ok(())
}

/// The bytes of an entry after its header.
pub struct Body<'a> {
    pub reader: &'a mut dyn Read,
    /// The number of bytes that the zip declares, which may be wrong.
    pub bytes: u64,
}

impl Body<'_> {
    /// Reads elements of any float type and byte order, and converts them to float32.
    pub fn floats(&mut self, header: &Header) -> Result<Vec<f32>, String> {
        match float_kind(&header.dtype)? {
            (2, true) => self.read(header, |b| f16::from_be_bytes([b[0], b[1]]).to_f32()),
            (2, false) => self.read(header, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
            (4, true) => self.read(header, |b| f32::from_be_bytes([b[0], b[1], b[2], b[3]])),
            (4, false) => self.read(header, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            (_, true) => self.read(header, |b| {
                f64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32
            }),
            (_, false) => self.read(header, |b| {
                f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32
            }),
        }
    }

    /// Reads elements that must be uint8.
    pub fn bytes(&mut self, header: &Header) -> Result<Vec<u8>, String> {
        match &header.dtype {
            DType::Plain(t) if t.type_char() == TypeChar::Uint && t.size_field() == 1 => {
                self.read(header, |b| b[0])
            }
            other => Err(format!("expected dtype uint8, found {}", dtype_name(other))),
        }
    }

    /// Reads exactly as many elements as the header says, in C order, and requires the entry to end there,
    /// which makes the zip reader check the entry's checksum. The vector grows only as bytes arrive, so a
    /// false size costs no memory.
    fn read<T: Copy>(&mut self, header: &Header, decode: impl Fn(&[u8]) -> T) -> Result<Vec<T>, String> {
        let size = header.dtype.num_bytes().unwrap_or(1);
        let count = element_count(&header.shape).ok_or("the element count overflows")?;
        let expected = (count as u64).checked_mul(size as u64);
        if expected != Some(self.bytes) {
            return Err(format!(
                "expected {} bytes for shape {:?} of {}, found {}",
                expected.map_or("more than 2^64".to_string(), |b| b.to_string()),
                header.shape,
                dtype_name(&header.dtype),
                self.bytes
            ));
        }
        let mut out = Vec::with_capacity(count.min(CHUNK));
        let mut buf = vec![0u8; CHUNK.min(count) * size];
        while out.len() < count {
            let n = CHUNK.min(count - out.len()) * size;
            self.reader.read_exact(&mut buf[..n]).map_err(|e| {
                format!("expected {count} elements, found damage or the end after {}: {e}", out.len())
            })?;
            out.extend(buf[..n].chunks_exact(size).map(&decode));
        }
        match self.reader.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(format!("expected {count} elements, found more")),
            Err(e) => return Err(format!("expected {count} elements, found damage after them: {e}")),
        }
        Ok(if header.fortran { to_c_order(&out, &header.shape) } else { out })
    }
}

/// The size of a float type in bytes, and whether it is big-endian.
fn float_kind(dtype: &DType) -> Result<(u64, bool), String> {
    if dtype.uses_pickled_array() {
        return Err(
            "expected dtype float32, found Python objects (|O): a pickle, which runs code when it is read; \
                    save the array with a numeric dtype"
                .into(),
        );
    }
    match dtype {
        DType::Plain(t) if t.type_char() == TypeChar::Float && matches!(t.size_field(), 2 | 4 | 8) => {
            Ok((t.size_field(), t.endianness() == npyz::Endianness::Big))
        }
        other => Err(format!("expected dtype float32 (or float64, float16), found {}", dtype_name(other))),
    }
}

/// A dtype as numpy names it, with its type code.
fn dtype_name(dtype: &DType) -> String {
    let DType::Plain(t) = dtype else { return "a structured dtype".into() };
    let bits = t.size_field().saturating_mul(8);
    match t.type_char() {
        TypeChar::Bool => format!("bool ({t})"),
        TypeChar::Int => format!("int{bits} ({t})"),
        TypeChar::Uint => format!("uint{bits} ({t})"),
        TypeChar::Float => format!("float{bits} ({t})"),
        TypeChar::Complex => format!("complex{bits} ({t})"),
        TypeChar::Object => format!("Python objects ({t})"),
        // Dates, strings and raw bytes are described by their code. The enum may grow.
        _ => format!("{t}"),
    }
}

/// Reorders elements from Fortran order (first index fastest) to C order (last index fastest).
fn to_c_order<T: Copy>(fortran: &[T], shape: &[usize]) -> Vec<T> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut step = 1;
    for &d in shape {
        strides.push(step);
        step *= d;
    }
    let (mut at, mut offset) = (vec![0; shape.len()], 0);
    let mut out = Vec::with_capacity(fortran.len());
    for _ in 0..fortran.len() {
        out.push(fortran[offset]);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            offset += strides[axis];
            if at[axis] < shape[axis] {
                break;
            }
            offset -= at[axis] * strides[axis];
            at[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float16_of_either_byte_order_is_read_exactly() {
        for (bits, value) in [
            (0x3c00u16, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 2f32.powi(-14)),
            (0x0001, 2f32.powi(-24)),
            (0x8000, -0.0),
            (0x7c00, f32::INFINITY),
        ] {
            for (descr, bytes) in [("<f2", bits.to_le_bytes()), (">f2", bits.to_be_bytes())] {
                let dtype = DType::new_scalar(descr.parse().unwrap());
                let header = Header { dtype, shape: vec![1], fortran: false };
                let mut reader = &bytes[..];
                let mut body = Body { reader: &mut reader, bytes: 2 };
                let found = body.floats(&header).unwrap();
                assert_eq!(found[0].to_bits(), f32::to_bits(value), "{bits:#x} as {descr}");
            }
        }
    }
}
