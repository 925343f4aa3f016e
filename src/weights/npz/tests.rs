use std::io::{Cursor, Write};
use std::path::Path;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::error::Result;
use crate::weights::common::{CHUNK, MAX_BYTES, element_count};
use crate::weights::{Tensors, sha256};

/// An npy file, version 1, with this header text and body.
fn npy(header: &str, body: &[u8]) -> Vec<u8> {
    let mut v = b"\x93NUMPY\x01\x00".to_vec();
    v.extend((header.len() as u16).to_le_bytes());
    v.extend(header.as_bytes());
    v.extend(body);
    v
}

fn header(descr: &str, fortran: &str, shape: &str) -> String {
    format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
}

fn le(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn zip_of(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn read(bytes: &[u8]) -> Result<Tensors> {
    let tensors = Archive::from_reader(Cursor::new(bytes), Path::new("w.npz"), MAX_BYTES)?.tensors()?;
    tensors.expect_all_read()?;
    Ok(tensors)
}

/// Reads one array `x` and returns the message, which must be a data error that names the file.
fn refusal(npy: &[u8]) -> String {
    refused(read(&zip_of(&[("x.npy", npy)], CompressionMethod::Deflated)))
}

fn refused<T>(r: Result<T>) -> String {
    let Err(e) = r else { panic!("expected a refusal") };
    assert_eq!(e.exit_code(), 4, "{e}");
    let text = e.to_string();
    assert!(text.starts_with("w.npz: "), "{text}");
    text
}

fn assert_has(text: &str, parts: &[&str]) {
    for p in parts {
        assert!(text.contains(p), "{p:?} is not in {text:?}");
    }
}

/// `num_batches_tracked` as numpy writes it: an int64 array without dimensions.
#[test]
fn batch_counters_are_left_out() {
    let counter = npy(&header("'<i8'", "False", "()"), &7i64.to_le_bytes());
    let weight = npy(&header("'<f4'", "False", "(2,)"), &le(&[1.0, 2.0]));
    let entries = [("bn1.num_batches_tracked.npy", &counter[..]), ("bn1.weight.npy", &weight)];
    let t = read(&zip_of(&entries, CompressionMethod::Stored)).unwrap();
    assert_eq!(
        t.iter().map(|(n, t)| (n, &t.data[..])).collect::<Vec<_>>(),
        [("bn1.weight", &[1.0, 2.0][..])]
    );
}

fn sample() -> Tensors {
    let mut t = Tensors::new();
    t.insert("layer1.conv", &[2, 3, 3, 2], (0..36).map(|i| i as f32 * 0.37 - 5.0).collect()).unwrap();
    t.insert("layer1.bias", &[2], vec![f32::MIN_POSITIVE / 2.0, -0.0]).unwrap();
    t.insert("scale", &[], vec![f32::MAX]).unwrap();
    t.insert("nothing", &[0, 4], vec![]).unwrap();
    t.insert("long", &[3 * CHUNK + 1], (0..3 * CHUNK + 1).map(|i| i as f32).collect()).unwrap();
    t.meta.insert("labels".into(), serde_json::json!(["hund", "straße"]));
    t
}

#[test]
fn saved_tensors_load_bit_for_bit_and_saving_twice_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.npz"), dir.path().join("b.npz"));
    let t = sample();
    save(&a, &t).unwrap();
    let back = load(&a).unwrap();
    assert_eq!(back.file(), a);
    assert_eq!(back.meta, t.meta);
    assert_eq!(back.len(), t.len());
    for ((n0, t0), (n1, t1)) in t.iter().zip(back.iter()) {
        assert_eq!((n0, &t0.shape), (n1, &t1.shape));
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&t0.data), bits(&t1.data), "{n0}");
    }
    save(&b, &back).unwrap();
    assert_eq!(sha256(&a).unwrap(), sha256(&b).unwrap());
}

/// tests/fixtures/numpy.npz, made with numpy 2.4.6:
/// `np.savez_compressed(path, f4=np.arange(6, dtype='<f4').reshape(2, 3) / 4,
///   f8=np.asfortranarray(np.arange(6, dtype='>f8').reshape(2, 3)),
///   f2=np.array([1.5, -65504, 6e-8], dtype='<f2'),
///   scalar=np.float32(7), empty=np.zeros((0, 3), 'f4'), u1=np.arange(4, dtype='u1'))`
#[test]
fn reads_an_npz_that_numpy_wrote() {
    let bytes = include_bytes!("../../../tests/fixtures/numpy.npz");
    let mut a = Archive::from_reader(Cursor::new(bytes), Path::new("w.npz"), MAX_BYTES).unwrap();
    assert_eq!(a.names().collect::<Vec<_>>(), ["empty", "f2", "f4", "f8", "scalar", "u1"]);
    let mut floats = |n| a.floats(n).map(|t| (t.shape, t.data)).unwrap();
    assert_eq!(floats("f4"), (vec![2, 3], vec![0., 0.25, 0.5, 0.75, 1., 1.25]));
    assert_eq!(floats("f8"), (vec![2, 3], vec![0., 1., 2., 3., 4., 5.]));
    // 6e-8 rounds to the smallest subnormal, 2^-24.
    assert_eq!(floats("f2"), (vec![3], vec![1.5, -65504., 2f32.powi(-24)]));
    assert_eq!(floats("scalar"), (vec![], vec![7.]));
    assert_eq!(floats("empty"), (vec![0, 3], vec![]));
    assert_eq!(a.bytes("u1").unwrap(), (vec![4], vec![0, 1, 2, 3]));
    assert!(a.meta().unwrap().is_empty());
    assert_has(&refused(a.floats("u1")), &["\"u1\"", "expected dtype float32", "found uint8 (|u1)"]);
    assert_has(&refused(a.bytes("f4")), &["\"f4\"", "expected dtype uint8", "found float32 (<f4)"]);
    assert_has(&refused(a.bytes("v")), &["\"v\"", "no such array", "f4"]);
}

#[test]
fn reads_every_npy_version_and_byte_order_and_fortran_order_in_three_dimensions() {
    let body = le(&[1.0]);
    for version in [2u8, 3] {
        let text = header("'<f4'", "False", "(1,)");
        let mut v = b"\x93NUMPY".to_vec();
        v.extend([version, 0]);
        v.extend((text.len() as u32).to_le_bytes());
        v.extend(text.as_bytes());
        v.extend(&body);
        let t = read(&zip_of(&[("x.npy", &v)], CompressionMethod::Stored)).unwrap();
        assert_eq!(t.get("x").unwrap().data, [1.0]);
    }
    let big: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| x.to_be_bytes()).collect();
    let t =
        read(&zip_of(&[("x.npy", &npy(&header("'>f4'", "False", "(2,)"), &big))], CompressionMethod::Stored));
    assert_eq!(t.unwrap().get("x").unwrap().data, [1.5, -2.0]);
    // Element [i, j, k] of shape [2, 3, 2] holds 100 i + 10 j + k; the first index runs fastest.
    let mut columns = vec![];
    for k in 0..2 {
        for j in 0..3 {
            for i in 0..2 {
                columns.push((100 * i + 10 * j + k) as f32);
            }
        }
    }
    let t = read(&zip_of(
        &[("x.npy", &npy(&header("'<f4'", "True", "(2, 3, 2)"), &le(&columns)))],
        CompressionMethod::Stored,
    ));
    assert_eq!(
        t.unwrap().get("x").unwrap().data,
        [0., 1., 10., 11., 20., 21., 100., 101., 110., 111., 120., 121.]
    );
}

#[test]
fn wrong_dtypes_are_named() {
    let eight = [0u8; 8];
    for (descr, found) in [
        ("'<i8'", "int64 (<i8)"),
        ("'|b1'", "bool (|b1)"),
        ("'<c8'", "complex64 (<c8)"),
        ("'<U2'", "<U2"),
        ("'<M8[s]'", "<M8[s]"),
        ("[('a', '<f4')]", "a structured dtype"),
        ("'|O'", "(|O): a pickle"),
    ] {
        let text = refusal(&npy(&header(descr, "False", "(1,)"), &eight));
        assert_has(&text, &["array \"x\"", "expected dtype float32", found]);
    }
}

#[test]
fn non_finite_numbers_are_refused_with_their_index() {
    let text =
        refusal(&npy(&header("'<f4'", "False", "(2, 3)"), &le(&[0., 1., 2., 3., f32::NAN, f32::INFINITY])));
    assert_has(&text, &["array \"x\"", "expected finite numbers", "NaN at index [1, 1] (element 4 of 6)"]);
    let body: Vec<u8> = 1e300f64.to_le_bytes().to_vec();
    assert_has(&refusal(&npy(&header("'<f8'", "False", "()"), &body)), &["inf at index []"]);
    let dir = tempfile::tempdir().unwrap();
    let mut t = Tensors::new();
    t.insert("w", &[2], vec![0.0, f32::NEG_INFINITY]).unwrap();
    let e = save(dir.path().join("w.npz"), &t).unwrap_err();
    assert_has(&e.to_string(), &["array \"w\"", "-inf at index [1]"]);
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn a_header_that_claims_more_or_less_than_its_entry_holds_is_refused() {
    for shape in ["(1000000, 1000000)", "(3,)", "(5,)", "()", "(0,)", "(4611686018427387904,)"] {
        let text = refusal(&npy(&header("'<f4'", "False", shape), &le(&[0.; 4])));
        assert_has(&text, &["array \"x\"", "expected ", "bytes for shape", "of float32 (<f4), found 16"]);
    }
    assert_has(
        &refusal(&npy(&header("'<f4'", "False", "(1000000000000,)"), &[])),
        &["4000000000000 bytes", "found 0"],
    );
}

#[test]
fn malformed_headers_are_refused() {
    let body = le(&[0.; 4]);
    for (text, why) in [
        (header("'<f4'", "False", "(4294967296, 4294967296, 4294967296)"), "overflows"),
        (header("'<f4'", "False", "(0, 9223372036854775807, 9223372036854775807)"), "overflows"),
        (header("'<f4'", "False", "(99999999999999999999,)"), "beyond 64 bits"),
        (header("'<f4'", "False", "(-4,)"), "unexpected '-'"),
        (header("'<f4'", "False", "(4.0,)"), "unexpected '.'"),
        (header("'<f4'", "False", "(0x4,)"), "unexpected 'x'"),
        (header("'<f4'", "False", "4"), "shape must be"),
        (header("'<f4'", "4", "(4,)"), "fortran_order"),
        (header("'f4'", "False", "(4,)"), "type string"),
        (header("'<f5'", "False", "(4,)"), "size"),
        (header("'\\u00e9'", "False", "(4,)"), "escape"),
        (header("'é'", "False", "(4,)"), "non-ASCII"),
        (header("4", "False", "(4,)"), "must be string or list"),
        ("{'descr': '<f4', 'fortran_order': False, }\n".into(), "missing key 'shape'"),
        ("[1, 2]\n".into(), "expected a python dict"),
        ("".into(), "could not parse"),
        (format!("{}{}\n", "(".repeat(9000), ")".repeat(9000)), "nested too deeply"),
    ] {
        assert_has(&refusal(&npy(&text, &body)), &["array \"x\"", "malformed npy header", why]);
    }
    let good = npy(&header("'<f4'", "False", "(4,)"), &body);
    let with = |at: usize, b: u8| {
        let mut v = good.clone();
        v[at] = b;
        v
    };
    assert_has(&refusal(&with(0, b'x')), &["expected an npy array"]);
    assert_has(&refusal(&with(6, 9)), &["version 1, 2 or 3, found 9"]);
    assert_has(&refusal(&good[..5]), &["the end of the entry"]);
    assert_has(&refusal(&good[..30]), &["the end of the entry"]);
    let mut huge = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
    huge.extend([b' '; 64]);
    assert_has(&refusal(&huge), &["npy header of at most 65536 bytes, found 4294967295"]);
}

#[test]
fn files_that_are_not_npz_are_refused() {
    for bytes in
        [&b""[..], b"PK", b"\x89PNG\r\n\x1a\n and so on", &npy(&header("'<f4'", "False", "()"), &[0; 4])]
    {
        assert_has(&refused(read(bytes)), &["expected an npz file"]);
    }
    assert_has(
        &refused(read(&zip_of(&[("notes.txt", b"hello")], CompressionMethod::Stored))),
        &["found \"notes.txt\""],
    );
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("none.npz"), dir.path().to_path_buf()] {
        let e = load(&path).unwrap_err();
        assert_eq!(e.exit_code(), 4);
        assert!(e.to_string().starts_with(path.to_str().unwrap()), "{e}");
    }
}

#[test]
fn the_error_for_a_duplicate_name_gives_the_name() {
    let one = npy(&header("'<f4'", "False", "(1,)"), &le(&[1.0]));
    let mut bytes =
        zip_of(&[("aa.npy", &one), ("b1.npy", &one), ("b2.npy", &one)], CompressionMethod::Stored);
    for i in 0..bytes.len() - 6 {
        if &bytes[i..i + 6] == b"b2.npy" {
            bytes[i + 1] = b'1';
        }
    }
    assert_has(&refused(read(&bytes)), &["\"b1\" more than once"]);
}

#[test]
fn missing_and_extra_arrays_are_listed() {
    let one = npy(&header("'<f4'", "False", "(1,)"), &le(&[1.0]));
    let bytes = zip_of(&[("a.npy", &one), ("b.npy", &one)], CompressionMethod::Stored);
    let a = Archive::from_reader(Cursor::new(bytes), Path::new("w.npz"), MAX_BYTES).unwrap();
    a.expect_names(&["b", "a"]).unwrap();
    assert_has(&refused(a.expect_names(&["a"])), &["expected the arrays [\"a\"], found [\"a\", \"b\"]"]);
    assert_has(&refused(a.expect_names(&["a", "b", "c"])), &["\"c\"]", "found [\"a\", \"b\"]"]);
}

#[test]
fn metadata_must_be_a_json_object() {
    let u1 = |text: &[u8]| npy(&header("'|u1'", "False", &format!("({},)", text.len())), text);
    let meta = |npy: &[u8]| read(&zip_of(&[("__meta__.npy", npy)], CompressionMethod::Deflated));
    assert_eq!(meta(&u1(b"{\"a\": 1}")).unwrap().meta["a"], 1);
    for text in [&b"[1]"[..], b"", b"{", b"{\"a\": \xff}"] {
        assert_has(&refused(meta(&u1(text))), &["__meta__", "expected a JSON object"]);
    }
    assert_has(&refused(meta(&u1(&[b'['; 100_000]))), &["expected a JSON object"]);
    assert_has(&refused(meta(&u1(&vec![b' '; 2 << 20]))), &["at most 1048576 bytes"]);
    assert_has(&refused(meta(&npy(&header("'|u1'", "False", "(1, 2)"), b"{}"))), &["one-dimensional"]);
    assert_has(
        &refused(meta(&npy(&header("'<f4'", "False", "()"), &[0; 4]))),
        &["__meta__", "expected dtype uint8"],
    );
}

#[test]
fn a_zip_bomb_is_refused_by_its_declared_size_and_stopped_if_that_size_is_false() {
    let big = npy(&header("'<f4'", "False", "(262144,)"), &vec![0; 1 << 20]);
    let bytes = zip_of(&[("x.npy", &big)], CompressionMethod::Deflated);
    assert!(bytes.len() < 4096);
    let e = Archive::from_reader(Cursor::new(&bytes), Path::new("w.npz"), 1 << 16).err().unwrap();
    assert_has(&e.to_string(), &["at most 65536 bytes", "found 1048"]);

    // First the zip's directory and the array's header both declare 16 elements, and a megabyte follows.
    // Then both declare 4 GB, and 64 bytes follow.
    let declare = |shape: &str, body: usize, declared: usize| {
        let npy = npy(&header("'<f4'", "False", shape), &vec![0; body]);
        let mut bytes = zip_of(&[("x.npy", &npy)], CompressionMethod::Deflated);
        let head = npy.len() - body;
        let size = (npy.len() as u32).to_le_bytes();
        let mut hits = 0;
        for i in 0..bytes.len() - 4 {
            if bytes[i..i + 4] == size {
                bytes[i..i + 4].copy_from_slice(&((head + declared) as u32).to_le_bytes());
                hits += 1;
            }
        }
        assert_eq!(hits, 2, "local header and directory");
        bytes
    };
    let text = refused(read(&declare("(16,)", 1 << 20, 64)));
    assert_has(&text, &["array \"x\"", "expected 16 elements", "larger than its declared"]);
    let text = refused(read(&declare("(1000, 1000, 1000)", 64, 4_000_000_000)));
    assert_has(&text, &["array \"x\"", "expected 1000000000 elements", "after 0"]);
}

#[test]
fn truncation_at_every_seventh_byte_and_flipped_bits_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let mut t = sample();
    t.take("long", &[3 * CHUNK + 1]).unwrap();
    save(&path, &t).unwrap();
    let deflated = std::fs::read(&path).unwrap();
    let plain = npy(&header("'<f4'", "False", "(2, 2)"), &le(&[1., 2., 3., 4.]));
    let stored = zip_of(&[("x.npy", &plain), ("y.npy", &plain)], CompressionMethod::Stored);
    let (mut ok, mut refusals) = (0, 0);
    let mut attempt = |bytes: &[u8]| match read(bytes) {
        Ok(t) => {
            assert!(t.iter().all(|(_, t)| element_count(&t.shape) == Some(t.data.len())));
            ok += 1;
        }
        Err(e) => {
            assert_eq!(e.exit_code(), 4, "{e}");
            refusals += 1;
        }
    };
    for whole in [&deflated, &stored] {
        for end in (0..whole.len()).step_by(7) {
            attempt(&whole[..end]);
        }
        let mut seed = 20_200_309u64;
        for _ in 0..4000 {
            let mut bytes = whole.clone();
            for _ in 0..=seed % 3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] ^= 1 << (seed >> 29 & 7);
            }
            attempt(&bytes);
        }
    }
    // Damage in the array before it is zipped, because the zip's checksum catches most of the damage above.
    let mut seed = 7u64;
    for _ in 0..4000 {
        let mut bytes = plain.clone();
        for _ in 0..=seed % 4 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 33) as usize % bytes.len();
            bytes[at] = (seed >> 20) as u8;
        }
        attempt(&zip_of(&[("x.npy", &bytes)], CompressionMethod::Stored));
    }
    assert!(ok > 100 && refusals > 8000, "{ok} read, {refusals} refused: the test no longer tests enough");
}
