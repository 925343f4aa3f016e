//! The contents of the committed fixtures, the errors for broken copies of them, and that a batch depends on
//! its step alone. `scripts/make_fixtures.py` makes the fixtures.

use dfka_engine::data::dataset::Dataset;
use dfka_engine::data::image::{Encoded, decode, load};
use dfka_engine::data::loader::Loader;
use dfka_engine::data::transform::{Transform, View};
use dfka_engine::data::{coco, folder, voc};
use dfka_engine::error::Error;
use dfka_engine::weights::npz::Archive;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn year() -> PathBuf {
    fixtures().join("voc/VOCdevkit/VOC2007")
}

/// A copy that a test may break.
fn copy(from: &Path) -> tempfile::TempDir {
    fn walk(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    walk(from, dir.path());
    dir
}

/// The targets of image `i` that are not 0, with their labels' names.
fn nonzero_targets(set: &Dataset, i: usize) -> Vec<(&str, u8)> {
    let pairs = set.labels.iter().zip(set.targets(i));
    pairs.filter(|(_, t)| **t > 0).map(|(l, t)| (&**l, *t)).collect()
}

fn assert_message(e: Error, parts: &[&str]) {
    let text = e.to_string();
    assert_eq!(e.exit_code(), 4, "{text}");
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
}

#[test]
fn voc_targets_are_the_class_lists() {
    let set = Dataset::voc(&year(), "trainval").unwrap();
    assert_eq!((set.len(), set.labels.len()), (6, 20));
    let expected: [&[(&str, u8)]; 6] = [
        &[("bus", 1), ("person", 1)],
        &[("diningtable", 1)],
        &[("bus", 1), ("car", 2)],
        &[("car", 2)],
        &[("person", 1)],
        &[("chair", 1), ("diningtable", 1)],
    ];
    for (i, e) in expected.iter().enumerate() {
        assert_eq!(nonzero_targets(&set, i), *e, "image {i}");
    }
    assert_eq!(Dataset::voc(&year(), "test").unwrap().len(), 3);
    let set = set.select(&["diningtable".into(), "bus".into()]).unwrap();
    assert_eq!((set.targets(1), set.targets(2)), (&[1, 0][..], &[0, 1][..]));
    assert_message(set.select(&["cow".into()]).unwrap_err(), &["VOC2007", "\"cow\"", "diningtable, bus"]);
}

#[test]
fn voc_annotations_say_the_same_as_the_class_lists() {
    let listed = voc::open(&year(), "trainval").unwrap();
    let dir = copy(&year());
    for entry in fs::read_dir(dir.path().join("ImageSets/Main")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().contains('_') {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(voc::open(dir.path(), "trainval").unwrap().targets, listed.targets);

    let xml = dir.path().join("Annotations/000007.xml");
    let text = fs::read_to_string(&xml).unwrap();
    let edited = |from: &str, to: &str| {
        assert!(text.contains(from));
        fs::write(&xml, text.replace(from, to)).unwrap();
        voc::open(dir.path(), "trainval").unwrap_err()
    };
    assert_message(
        edited("<difficult>0", "<difficult>yes"),
        &["line 9: expected <difficult> of 0 or 1, found \"yes\""],
    );
    assert_message(edited("<name>diningtable</name>", ""), &["line 9: expected an object with a <name>"]);
    assert_message(edited(">diningtable<", "> <"), &["line 9: expected an object with a <name>"]);
    assert_message(edited("</annotation>", ""), &["000007.xml: expected an annotation in XML"]);
    assert_message(edited("annotation", "notation"), &["expected an element <annotation>, found <notation>"]);
    let bomb = "<!DOCTYPE a [<!ENTITY x \"y\">]><annotation>";
    assert_message(edited("<annotation>", bomb), &["000007.xml: expected an annotation in XML"]);
    fs::remove_file(&xml).unwrap();
    assert_message(voc::open(dir.path(), "trainval").unwrap_err(), &["000007.xml: cannot read"]);
}

/// A copy of the fixture without class lists, whose annotations have these names in place of VOC's.
fn with_names_of_ones_own() -> tempfile::TempDir {
    let dir = copy(&year());
    for entry in fs::read_dir(dir.path().join("ImageSets/Main")).unwrap().map(|e| e.unwrap().path()) {
        if entry.file_name().unwrap().to_str().unwrap().contains('_') {
            fs::remove_file(entry).unwrap();
        }
    }
    for entry in fs::read_dir(dir.path().join("Annotations")).unwrap().map(|e| e.unwrap().path()) {
        let text = fs::read_to_string(&entry).unwrap();
        let text = text.replace(">bus<", ">tram 7<").replace(">diningtable<", "> anvil <");
        fs::write(entry, text.replace(">car<", ">Pflug &amp; Egge<")).unwrap();
    }
    dir
}

#[test]
fn annotations_may_have_names_of_ones_own() {
    let dir = with_names_of_ones_own();
    let set = Dataset::voc(dir.path(), "trainval").unwrap();
    assert_eq!(set.labels, ["Pflug & Egge", "anvil", "chair", "person", "tram 7"]);
    let expected: [&[(&str, u8)]; 6] = [
        &[("person", 1), ("tram 7", 1)],
        &[("anvil", 1)],
        &[("Pflug & Egge", 2), ("tram 7", 1)],
        &[("Pflug & Egge", 2)],
        &[("person", 1)],
        &[("anvil", 1), ("chair", 1)],
    ];
    for (i, e) in expected.iter().enumerate() {
        assert_eq!(nonzero_targets(&set, i), *e, "image {i}");
    }
    let set = set.select(&["tram 7".into(), "anvil".into()]).unwrap();
    assert_eq!((set.targets(0), set.targets(1)), (&[1, 0][..], &[0, 1][..]));
    // A label that is asked for and that no annotation has.
    let set = Dataset::voc(dir.path(), "trainval").unwrap();
    let e = set.select(&["anvil".into(), "hammer".into()]).unwrap_err();
    assert_message(
        e,
        &["expected a label \"hammer\", found only Pflug & Egge, anvil, chair, person, tram 7"],
    );
    // Names of VOC's alone mean all twenty, also those that no image has.
    assert_eq!(Dataset::voc(&year(), "trainval").unwrap().labels, voc::LABELS);

    for entry in fs::read_dir(dir.path().join("Annotations")).unwrap() {
        fs::write(entry.unwrap().path(), "<annotation></annotation>").unwrap();
    }
    let e = voc::open(dir.path(), "trainval").unwrap_err();
    assert_message(e, &["Annotations: expected annotations with objects, found none in the 6 of the split"]);
}

#[test]
fn broken_voc_folders_are_named() {
    type Break = fn(&Path);
    let list = |name: &str, text: &str| (format!("ImageSets/Main/{name}.txt"), text.to_string());
    for ((file, text), parts) in [
        (list("trainval", ""), &["trainval.txt: expected a list of images, found none"][..]),
        (list("trainval", "000005 1\n"), &["trainval.txt: line 1: ", "found 2 columns"]),
        (list("trainval", "000005\n\n../a\n"), &["line 3: expected the name of an image, found \"../a\""]),
        (list("trainval", "000005\n000007\n000005\n"), &["line 3: ", "\"000005\" again (first on line 1)"]),
        (list("trainval", "000005\n000006\n"), &["line 2: expected 000006.jpg in JPEGImages, found no such"]),
        (list("bus_trainval", ""), &["bus_trainval.txt: expected a list of images, found none"]),
        (list("bus_trainval", "000005\n"), &["bus_trainval.txt: line 1: ", "found 1 columns"]),
        (list("bus_trainval", "000005 2\n"), &["line 1: expected 1 (present), -1 (absent) or 0", "\"2\""]),
        (list("bus_trainval", "000006 1\n"), &["line 1: expected an image of the split, found \"000006\""]),
        (
            list("bus_trainval", "000005 1\n000005 1\n"),
            &["line 2: expected each image once, found \"000005\""],
        ),
        (list("bus_trainval", "000005 1\n"), &["bus_trainval.txt: ", "found no \"000007\""]),
    ] {
        let dir = copy(&year());
        fs::write(dir.path().join(file), text).unwrap();
        assert_message(voc::open(dir.path(), "trainval").unwrap_err(), parts);
    }
    for (breaks, parts) in [
        (
            (|d| fs::remove_file(d.join("JPEGImages/000009.jpg")).unwrap()) as Break,
            &["trainval.txt: line 3: expected 000009.jpg"][..],
        ),
        (
            |d| fs::remove_file(d.join("ImageSets/Main/bus_trainval.txt")).unwrap(),
            &["bus_trainval.txt: cannot read"],
        ),
        (
            |d| fs::write(d.join("ImageSets/Main/bus_trainval.txt"), b"000005 1\n\xff").unwrap(),
            &["line 2: not UTF-8"],
        ),
        (|d| fs::remove_dir_all(d.join("JPEGImages")).unwrap(), &["JPEGImages: cannot read the folder"]),
        (|d| fs::remove_dir_all(d.join("ImageSets")).unwrap(), &["trainval.txt: cannot read"]),
    ] {
        let dir = copy(&year());
        breaks(dir.path());
        assert_message(voc::open(dir.path(), "trainval").unwrap_err(), parts);
    }
    assert_message(voc::open(&year(), "traival").unwrap_err(), &["traival.txt: cannot read"]);
}

#[test]
fn byte_order_marks_and_line_ends_of_windows_change_nothing() {
    let marked = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        format!("\u{feff}{}", text.replace('\n', "\r\n"))
    };
    let dir = copy(&year());
    for folder in ["ImageSets/Main", "Annotations"] {
        for entry in fs::read_dir(dir.path().join(folder)).unwrap() {
            let file = entry.unwrap().path();
            fs::write(&file, marked(&fs::read(&file).unwrap())).unwrap();
        }
    }
    let plain = copy(&year());
    for is_from_annotations in [false, true] {
        let [found, expected] = [&dir, &plain].map(|dir| {
            let sets = fs::read_dir(dir.path().join("ImageSets/Main")).unwrap();
            let class_lists = sets.map(|e| e.unwrap().path()).filter(|p| p.to_str().unwrap().contains("_"));
            class_lists.filter(|_| is_from_annotations).for_each(|list| fs::remove_file(list).unwrap());
            voc::open(dir.path(), "trainval").unwrap().targets
        });
        assert!(found == expected && found.contains(&1), "{is_from_annotations}");
    }

    let (images, json) = coco_files();
    let path = dir.path().join("instances.json");
    fs::write(&path, marked(&fs::read(&json).unwrap())).unwrap();
    assert_eq!(coco::open(&images, &path).unwrap(), coco::open(&images, &json).unwrap());
    let latin = fs::read_to_string(&json).unwrap().replacen("dining table", "caf@", 1);
    fs::write(&path, latin.bytes().map(|b| if b == b'@' { 0xe9 } else { b }).collect::<Vec<_>>()).unwrap();
    assert_message(coco::open(&images, &path).unwrap_err(), &["instances.json: line ", "perhaps Latin-1"]);
}

#[test]
fn coco_targets_are_the_instances() {
    let (images, json) = coco_files();
    let set = Dataset::coco(&images, &json).unwrap();
    assert_eq!(set.labels, ["person", "bus", "dining table"], "by category id");
    let expected: [&[(&str, u8)]; 5] = [
        &[("person", 1), ("dining table", 1)],
        &[("bus", 1)],
        &[],
        &[("person", 1), ("bus", 1)], // the person is a crowd
        &[("dining table", 1)],
    ];
    for (i, e) in expected.iter().enumerate() {
        assert_eq!(nonzero_targets(&set, i), *e, "image {i}");
    }
    assert_eq!(set.pixels(4).unwrap().c, 4, "a grey JPEG becomes RGBX");
}

fn coco_files() -> (PathBuf, PathBuf) {
    let root = fixtures().join("coco");
    (root.join("images"), root.join("annotations/instances_val2017.json"))
}

#[test]
fn broken_coco_files_are_named() {
    let (images, json) = coco_files();
    let text = fs::read_to_string(&json).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("instances.json");
    let mutilated = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        coco::open(&images, &path).unwrap_err()
    };
    for (from, to, parts) in [
        ("\"images\"", "\"pictures\"", &["expected COCO's instances: missing field `images`"][..]),
        ("\"id\": 139", "\"id\": -1", &["image_id 139 is not listed", "annotations["]),
        ("\"id\": 139", "\"id\": 1.5", &["expected an id, which is a whole number or a text, found 1.5"]),
        ("\"id\": 139", "\"id\": true", &["expected an id, which is a whole number or a text at line "]),
        ("\"id\": 139", "\"id\": NaN", &["expected an id, found NaN, an infinite number or an empty text"]),
        ("\"image_id\": 139", "\"image_id\": 140", &["image_id 140 is not listed", "annotations["]),
        ("\"category_id\": 67", "\"category_id\": 68", &["annotations[0]: category_id 68 is not listed"]),
        ("\"id\": 139", "\"id\": 285", &["images: id 285 occurs twice"]),
        ("000000000139.jpg", "000000000285.jpg", &["images: expected each file once", "000000000285.jpg"]),
        (
            "000000000139.jpg",
            "../139.jpg",
            &[
                "images: expected the name of a file in the images' folder or below it, found \"../139.jpg\" (id 139)",
            ],
        ),
        ("000000000139.jpg", "/139.jpg", &["in the images' folder or below it, found \"/139.jpg\" (id 139)"]),
        ("000000000139.jpg", "none/139.jpg", &["expected none/139.jpg in ", "found no such file"]),
        ("000000000139.jpg", "000000000140.jpg", &["expected 000000000140.jpg in ", "found no such file"]),
        ("\"name\": \"bus\"", "\"name\": \"person\"", &["categories: expected distinct names", "\"person\""]),
        ("\"id\": 67,", "\"id\": 6,", &["categories: id 6 occurs twice"]),
        ("{", "[", &["instances.json: expected COCO's instances: "]),
    ] {
        assert_message(mutilated(from, to), parts);
    }
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert_message(
        coco::open(&images, &path).unwrap_err(),
        &["instances.json: expected COCO's instances: EOF", "line "],
    );
    fs::write(&path, r#"{"images": [], "annotations": [], "categories": []}"#).unwrap();
    assert_message(
        coco::open(&images, &path).unwrap_err(),
        &["expected images and categories, found 0 and 0"],
    );
    assert_message(coco::open(&images, &dir.path().join("no.json")).unwrap_err(), &["no.json: cannot read"]);
    assert_message(coco::open(&dir.path().join("no"), &json).unwrap_err(), &["no: cannot read the folder"]);
}

#[test]
fn hidden_files_of_a_folder_are_no_images() {
    let dir = copy(&fixtures().join("folder"));
    let before = folder::list(dir.path()).unwrap();
    fs::write(dir.path().join("._a.jpg"), b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ").unwrap();
    fs::create_dir(dir.path().join(".thumbnails")).unwrap();
    fs::copy(dir.path().join("a.jpg"), dir.path().join(".thumbnails/a.jpg")).unwrap();
    assert_eq!(folder::list(dir.path()).unwrap(), before);
    let webp = dir.path().join("w.jpg");
    fs::write(&webp, b"RIFF\x1a\0\0\0WEBPVP8 ").unwrap();
    assert_message(
        folder::load(dir.path(), [8, 8, 3]).unwrap_err(),
        &["w.jpg: ", "found a WebP file, which is not read"],
    );
}

/// What Python's `json` writes, ids of other programs, and names as pycocotools joins them.
#[test]
fn coco_files_of_other_programs_are_read() {
    let (images, json) = coco_files();
    let expected = coco::open(&images, &json).unwrap();
    let text = fs::read_to_string(&json).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("instances.json");
    let parsed = |text: &str| {
        fs::write(&path, text).unwrap();
        coco::open(&images, &path).unwrap()
    };
    assert!(text.contains("\"area\": "), "a field that is not read");
    for number in ["NaN", "Infinity", "-Infinity"] {
        let with_it = text.replacen("\"area\": ", &format!("\"area\": {number}, \"was\": "), 1);
        let named = with_it.replacen("\"name\": \"person\"", "\"name\": \"a \\\" NaN\"", 1);
        assert_eq!(parsed(&with_it), expected);
        assert_eq!(parsed(&named).labels[0], "a \" NaN");
    }
    for (key, ids) in [("id", [139, 285]), ("image_id", [139, 285])] {
        for id in ids {
            assert!(text.contains(&format!("\"{key}\": {id}")), "{key} {id}");
        }
    }
    let with_ids = |f: &dyn Fn(&str) -> String| {
        let mut out = text.clone();
        for id in ["139", "285", "632", "724", "776"] {
            for key in ["\"id\": ", "\"image_id\": "] {
                for end in [",", "\n", "}", " "] {
                    out = out.replace(&format!("{key}{id}{end}"), &format!("{key}{}{end}", f(id)));
                }
            }
        }
        assert_ne!(out, text);
        parsed(&out)
    };
    assert_eq!(with_ids(&|id| format!("{id}.0")), expected);
    assert_eq!(with_ids(&|id| format!("\"{id}\"")), expected);
    let reversed = with_ids(&|id| format!("-{id}"));
    assert_eq!(reversed.images.iter().rev().collect::<Vec<_>>(), expected.images.iter().collect::<Vec<_>>());

    let root = images.parent().unwrap();
    let below = text.replace("\"file_name\": \"", "\"file_name\": \"images/");
    fs::write(&path, below).unwrap();
    assert_eq!(coco::open(root, &path).unwrap(), expected);
    fs::write(&path, b"\x1f\x8b\x08\0").unwrap();
    assert_message(coco::open(root, &path).unwrap_err(), &["found a gzip file: unpack it with gunzip"]);
}

/// The decoder gives the same bits as Pillow: both have libjpeg-turbo's arithmetic.
#[test]
fn the_decoder_agrees_with_pillow() {
    let root = fixtures().join("folder");
    let mut pillow = Archive::open(root.join("pillow.npz")).unwrap();
    let mut compared = 0;
    for file in folder::list(&root).unwrap() {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let found = load(&file).unwrap();
        let (shape, expected) = pillow.bytes(name).unwrap();
        assert_eq!((&shape[..], found.c), (&[found.h, found.w, 3][..], 4), "{name}");
        let pairs = found.data.chunks_exact(4).zip(expected.chunks_exact(3));
        let differences = pairs.filter(|(found, expected)| found[..3] != **expected).count();
        assert_eq!(differences, 0, "{name}: of {} pixels", found.h * found.w);
        compared += 1;
    }
    assert_eq!(compared, 8);
}

/// The rows that a crop needs are the same whether or not the rest is decoded, for every kind of file and
/// every row.
#[test]
fn the_first_rows_are_the_same_when_the_rest_is_not_decoded() {
    let mut shortened = Vec::new();
    for file in ["folder", "voc"].iter().flat_map(|f| folder::list(&fixtures().join(f)).unwrap()) {
        let all = load(&file).unwrap();
        for rows in 0..=all.h + 1 {
            let some = Encoded::open(&file).unwrap().decode(rows, vec![7; 5]).unwrap();
            assert_eq!((some.w, some.c), (all.w, all.c));
            assert!(some.h >= rows.min(all.h) && some.data.len() == some.h * some.w * 4);
            let seen = rows.min(all.h) * all.w * 4;
            assert!(some.data[..seen] == all.data[..seen], "{}: {rows} rows", file.display());
            if rows == 1 && some.h < all.h {
                shortened.push(file.file_name().unwrap().to_str().unwrap().to_string());
            }
        }
    }
    // Every JPEG but b.JPEG, which is progressive. VOC's have their chroma halved both ways.
    assert_eq!(shortened[..4], ["a.jpg", "c.jpg", "d.jpg", "h.jpg"]);
    assert!(shortened.len() > 4 && shortened[4..].iter().all(|f| f.starts_with("0000")), "{shortened:?}");
}

/// The centre crop is torchvision's: resized by Pillow, then cropped. The resize here differs by fixed-point
/// rounding, and computes only the pixels that are kept.
#[test]
fn the_centre_crop_is_that_of_torchvision() {
    let root = fixtures().join("folder");
    let (shape, expected) = Archive::open(root.join("pillow.npz")).unwrap().bytes("centre").unwrap();
    let set = folder::load(&root, [24, 24, 3]).unwrap();
    assert_eq!(shape, set.shape());
    for (i, expected) in expected.chunks_exact(set.image_len()).enumerate() {
        let differences: Vec<f64> =
            set.image(i).iter().zip(expected).map(|(a, b)| f64::from(a.abs_diff(*b))).collect();
        let (mean, worst) = (
            differences.iter().sum::<f64>() / differences.len() as f64,
            differences.iter().copied().fold(0.0, f64::max),
        );
        assert!(mean <= 0.8 && worst <= 6.0, "image {i}: mean {mean:.3}, worst {worst}");
    }
}

/// Bytes after the image, which cameras and broken tools leave, are ignored, as Pillow does.
#[test]
fn bytes_after_the_image_are_ignored() {
    for name in ["a.jpg", "b.JPEG", "c.jpg", "d.jpg", "more/h.jpg"] {
        let file = fixtures().join("folder").join(name);
        let (whole, expected) = (fs::read(&file).unwrap(), load(&file).unwrap());
        for behind in [0, 2] {
            let (picture, end) = whole.split_at(whole.len() - behind);
            let bytes = [picture, &[0, 1, 2, 3, 0xff, 0, 0x55, 7], end].concat();
            assert!(decode(&bytes, &file).unwrap() == expected, "{name}: {behind} bytes before its end");
        }
    }
}

/// No file of the folder is accepted when it is cut short, wherever it is cut.
#[test]
fn truncated_images_are_refused() {
    for file in folder::list(&fixtures().join("folder")).unwrap() {
        let whole = fs::read(&file).unwrap();
        for tenths in 0..10 {
            let cut = &whole[..whole.len() * tenths / 10];
            match decode(cut, &file) {
                Ok(_) => panic!("{}: {tenths} tenths of it pass for the whole", file.display()),
                Err(e) => assert_message(e, &[file.file_name().unwrap().to_str().unwrap()]),
            }
        }
    }
}

#[test]
fn a_folder_is_read_completely_in_the_order_of_its_names() {
    let root = fixtures().join("folder");
    let names: Vec<String> = folder::list(&root)
        .unwrap()
        .iter()
        .map(|f| f.strip_prefix(&root).unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a.jpg", "b.JPEG", "c.jpg", "d.jpg", "e.png", "f.png", "more/g.png", "more/h.jpg"]);
    let set = folder::load(&root, [16, 24, 3]).unwrap();
    assert_eq!(set.shape(), [8, 16, 24, 3]);
    let c = set.image(2);
    assert!(c.chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]), "c.jpg is grey");

    let dir = copy(&root);
    // PIL shows smoothed blocks for a progressive file without its last scans, and says nothing.
    let whole = fs::read(root.join("b.JPEG")).unwrap();
    let scans: Vec<usize> = (0..whole.len() - 1).filter(|i| whole[*i..*i + 2] == [0xff, 0xda]).collect();
    assert!(scans.len() > 6, "{scans:?}");
    for start in &scans[1..] {
        fs::write(dir.path().join("b.JPEG"), [&whole[..*start], &[0xff, 0xd9]].concat()).unwrap();
        let e = folder::load(dir.path(), [16, 24, 3]).unwrap_err();
        assert_message(e, &["b.JPEG: not a whole JPEG: the last scans of this progressive file are missing"]);
    }
    let half = fs::read(root.join("b.JPEG")).unwrap();
    fs::write(dir.path().join("b.JPEG"), &half[..half.len() / 2]).unwrap();
    assert_message(folder::load(dir.path(), [16, 24, 3]).unwrap_err(), &["b.JPEG: not a whole JPEG"]);
    let empty = tempfile::tempdir().unwrap();
    assert_message(
        folder::list(empty.path()).unwrap_err(),
        &["expected .jpg, .jpeg or .png files, found none"],
    );
    assert_message(folder::list(&empty.path().join("no")).unwrap_err(), &["no: cannot read the folder"]);
}

const BATCH: usize = 4;

/// Images and targets of one step.
fn batch(loader: &mut Loader, set: &Dataset, transform: &Transform, step: u64) -> (Vec<f32>, Vec<f32>) {
    let mut images = vec![f32::NAN; BATCH * transform.len()];
    let mut targets = vec![f32::NAN; BATCH * set.labels.len()];
    loader.fill(step, &mut images[..], &mut targets).unwrap();
    assert!(images.iter().all(|v| (-1.0..=1.0).contains(v)));
    assert!(targets.iter().all(|t| [0.0, 1.0, -1.0].contains(t)));
    (images, targets)
}

#[test]
fn a_batch_is_a_function_of_its_step() {
    let set = Arc::new(Dataset::voc(&year(), "trainval").unwrap());
    let transform = Transform::train([24, 24, 3]);
    let of = |loader: &mut Loader, step| batch(loader, &set, &transform, step);
    let mut one = Loader::with_threads(set.clone(), transform, BATCH, 7, 1).unwrap();
    let all: Vec<_> = (0..9).map(|s| of(&mut one, s)).collect();
    for threads in [2, 5] {
        let mut other = Loader::with_threads(set.clone(), transform, BATCH, 7, threads).unwrap();
        for (s, expected) in all.iter().enumerate() {
            assert!(of(&mut other, s as u64) == *expected, "{threads} threads, step {s}");
        }
    }
    let mut resumed = Loader::new(set.clone(), transform, BATCH, 7, 5).unwrap();
    assert!(of(&mut resumed, 5) == all[5] && of(&mut resumed, 6) == all[6]);
    assert!(of(&mut resumed, 2) == all[2] && of(&mut resumed, 8) == all[8], "a jump, back and forth");
    let mut other = Loader::new(set.clone(), transform, BATCH, 8, 0).unwrap();
    assert!(of(&mut other, 0) != all[0], "another seed, another batch");
    assert!(all.iter().enumerate().all(|(i, a)| !all[..i].contains(a)), "steps differ");
}

#[test]
fn an_epoch_has_every_image_once_in_its_own_order() {
    let set = Arc::new(Dataset::voc(&year(), "trainval").unwrap());
    let transform = Transform { image: [8, 8, 3], view: View::Squash };
    let mut loader = Loader::new(set.clone(), transform, BATCH, 3, 0).unwrap();
    // An image that is only resized is the same in every epoch: 6 steps of 4 are 4 epochs of 6.
    let images: Vec<Vec<u32>> = (0..6)
        .flat_map(|s| {
            let (images, _) = batch(&mut loader, &set, &transform, s);
            images
                .chunks(transform.len())
                .map(|i| i.iter().map(|v| v.to_bits()).collect())
                .collect::<Vec<_>>()
        })
        .collect();
    let mut sorted: Vec<Vec<Vec<u32>>> = images.chunks(6).map(<[_]>::to_vec).collect();
    assert!(sorted[0] != sorted[1] || sorted[1] != sorted[2], "no two epochs differ");
    sorted.iter_mut().for_each(|e| e.sort());
    assert!(sorted.iter().all(|e| *e == sorted[0]));
    sorted[0].dedup();
    assert_eq!(sorted[0].len(), 6, "six images, all different");
}

#[test]
fn the_last_batch_in_order_has_the_remaining_images() {
    let set = Arc::new(Dataset::voc(&year(), "trainval").unwrap());
    let transform = Transform::eval([24, 24, 3]);
    let mut loader = Loader::in_order(set.clone(), transform, BATCH).unwrap();
    let mut images = vec![9.0; BATCH * transform.len()];
    let mut targets = vec![9.0; BATCH * 20];
    loader.fill(0, &mut images[..], &mut targets).unwrap();
    assert!(images.iter().chain(&targets).all(|v| *v != 9.0));
    let (bus, car) = (5, 6);
    assert_eq!(
        (targets[bus], targets[2 * 20 + bus], targets[2 * 20 + car]),
        (1.0, 1.0, -1.0),
        "difficult does not count"
    );
    images.fill(9.0);
    loader.fill(1, &mut images[..], &mut targets).unwrap();
    assert_eq!(images.iter().filter(|v| **v == 9.0).count(), 2 * transform.len(), "two of six are left");
}

#[test]
fn a_damaged_image_stops_the_loader_with_its_name() {
    let dir = copy(&year());
    let path = dir.path().join("JPEGImages/000012.jpg");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let set = Arc::new(Dataset::voc(dir.path(), "trainval").unwrap());
    let transform = Transform::eval([24, 24, 3]);
    let mut loader = Loader::new(set.clone(), transform, 6, 1, 0).unwrap();
    let (mut images, mut targets) = (vec![0.0; 6 * transform.len()], vec![0.0; 6 * 20]);
    for _ in 0..2 {
        let e = loader.fill(0, &mut images[..], &mut targets).unwrap_err();
        assert_message(e, &["000012.jpg: not a whole JPEG"]);
    }
    drop(loader);
    fs::write(&path, whole).unwrap();
    let mut loader = Loader::new(set.clone(), transform, 6, 1, 0).unwrap();
    loader.fill(0, &mut images[..], &mut targets).unwrap();
    let e = loader.fill(1, &mut images[1..], &mut targets).unwrap_err();
    assert!(e.to_string().contains("expected an output of 6 x 1728 pixels and 20 targets"), "{e}");
    assert!(Loader::new(set, transform, 0, 1, 0).is_err());
}
