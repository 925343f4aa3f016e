//! Reports in a real browser: nothing on the console, no network request, the headings and figures of the
//! run, no page wider than a phone, readable in the light and the dark colour scheme, and a screenshot that
//! is not blank.
//!
//! The browser is the one that `DFKA_BROWSER` names, or Chromium or Chrome in PATH. `DFKA_SCREENSHOTS=DIR`
//! keeps the screenshots.

use crate::common::{Lab, network, skipped, teacher_tensors};
use dfka_engine::summary::Summary;
use dfka_engine::weights::npz;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The browser's path. Without one the test prints that it is skipped, or fails if `DFKA_REQUIRE_BROWSER` is
/// set.
fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("DFKA_BROWSER").map(PathBuf::from);
    let folders: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let found = named.or_else(|| {
        let mut all = names.iter().flat_map(|n| folders.iter().map(move |f| f.join(n)));
        all.find(|p| p.is_file())
    });
    if found.is_none() {
        assert!(
            std::env::var_os("DFKA_REQUIRE_BROWSER").is_none(),
            "DFKA_REQUIRE_BROWSER is set, and there is no browser"
        );
        skipped("no Chromium or Chrome on the PATH, and DFKA_BROWSER names none");
    }
    found
}

/// A headless browser with one page, controlled through the DevTools protocol over a pipe.
struct Page {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: String,
    last_id: u64,
    /// Messages that were no answer to a call.
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Page {
    fn open(browser: &Path) -> Page {
        let profile = tempfile::tempdir().unwrap();
        // The browser reads from descriptor 3 and writes to 4, messages ended by a zero byte.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null", "sh"])
            .arg(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--hide-scrollbars", "--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, from) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(out).split(0).map_while(Result::ok) {
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    break;
                }
            }
        });
        let mut page =
            Page { child, to, from, session: String::new(), last_id: 0, events: vec![], _profile: profile };
        let target = page.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached =
            page.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        page.session = attached["sessionId"].as_str().unwrap().into();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page
    }

    fn next(&mut self, waiting_for: &str) -> Value {
        // Not a measure of speed: a browser that sends nothing for two minutes has died.
        let message = self.from.recv_timeout(Duration::from_secs(120));
        message.unwrap_or_else(|e| panic!("the browser does not answer {waiting_for}: {e}"))
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        loop {
            let message = self.next(method);
            if message["id"] == json!(self.last_id) {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Loads a file and waits until it is complete; returns the browser's messages meanwhile.
    fn load(&mut self, file: &Path) -> Vec<Value> {
        self.events.clear();
        self.call("Page.navigate", json!({ "url": format!("file://{}", file.display()) }));
        while !self.events.iter().any(|e| e["method"] == "Page.loadEventFired") {
            let event = self.next("a page to load");
            self.events.push(event);
        }
        self.evaluate("document.fonts.ready.then(() => 0)");
        std::mem::take(&mut self.events)
    }

    fn evaluate(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    fn show_as(&mut self, width: u32, height: u32, scheme: &str) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// The whole page as a PNG, at most 12000 pixels high.
    fn screenshot(&mut self, width: u32) -> Vec<u8> {
        let height = self.evaluate("document.documentElement.scrollHeight").as_u64().unwrap().min(12_000);
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        unbase64(self.call("Page.captureScreenshot", params)["data"].as_str().unwrap())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // The test is over; nothing is lost when the browser is killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unbase64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = text
        .bytes()
        .filter(|c| *c != b'=')
        .map(|c| DIGITS.iter().position(|d| *d == c).unwrap() as u32)
        .collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let word = four.iter().enumerate().fold(0, |word, (i, d)| word | d << (18 - 6 * i));
        [16, 8, 0].map(|shift| (word >> shift) as u8).into_iter().take(four.len() - 1)
    });
    bytes.collect()
}

/// Measurements of a page, made by a script inside it.
const PROBE: &str = r#"(() => {
    const luminance = (color) => {
        const [r, g, b] = color.match(/[\d.]+/g).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const page = luminance(getComputedStyle(document.body).backgroundColor);
    const contrast = (selector) => [...document.querySelectorAll(selector)].map(e => {
        const ink = luminance(getComputedStyle(e).color);
        return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
    });
    const width = document.documentElement.clientWidth;
    // An svg clips what is inside it.
    const scrolls = (e) => e.closest('.wide') !== null || (e.closest('svg') ?? e) !== e;
    return {
        width, inner: window.innerWidth, scroll: document.documentElement.scrollWidth,
        wide: [...document.querySelectorAll('body *')]
            .filter(e => !scrolls(e) && e.getBoundingClientRect().right > width + 0.5)
            .map(e => e.tagName + ' ' + e.className).slice(0, 5),
        headings: [...document.querySelectorAll('h1, h2, summary')].map(e => e.textContent),
        text: document.body.textContent.replaceAll('\u00a0', ' '),
        scripts: document.scripts.length,
        elements: [...new Set([...document.querySelectorAll('body *')].map(e => e.tagName.toLowerCase()))],
        broken: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length,
        images: document.images.length,
        handlers: [...document.querySelectorAll('*')]
            .filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length,
        page, contrast: Math.min(...contrast('p, h1, h2, td, th, dt, dd, figcaption, .key, .badge, .tile b')),
    };
})()"#;

fn words(v: &Value) -> Vec<&str> {
    v.as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect()
}

/// Checks one report at every size and in both colour schemes; returns its text.
fn look(page: &mut Page, name: &str, file: &Path, headings: &[&str], figures: &[String]) {
    for (width, height) in [(320, 640), (390, 844), (1280, 900)] {
        for scheme in ["light", "dark"] {
            let at = format!("{name} at {width}x{height}, {scheme}");
            page.show_as(width, height, scheme);
            let events = page.load(file);
            for e in &events {
                let method = e["method"].as_str().unwrap_or_default();
                let is_noise = ["Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"];
                assert!(!is_noise.contains(&method) && method != "Page.javascriptDialogOpening", "{at}: {e}");
                let url = e["params"]["request"]["url"].as_str().unwrap_or("file://");
                assert!(
                    url.starts_with("file://") || url.starts_with("data:image/png"),
                    "{at} fetches {url}"
                );
            }
            let seen = page.evaluate(PROBE);
            assert_eq!(seen["width"], json!(width), "{at}: {}", seen["wide"]);
            assert_eq!(seen["inner"], json!(width), "{at}: {}", seen["wide"]);
            assert_eq!(seen["scroll"], json!(width), "{at} is wider than its window: {}", seen["wide"]);
            assert_eq!(seen["wide"], json!([]), "{at}");
            assert!(seen["scripts"] == 0 && seen["handlers"] == 0, "{at} has scripts");
            assert_eq!(seen["broken"], 0, "{at}: images that do not show");
            for wrong in ["script", "iframe", "object", "link", "form", "b2", "u"] {
                assert!(!words(&seen["elements"]).contains(&wrong), "{at}: <{wrong}>");
            }
            let found = words(&seen["headings"]);
            for heading in headings {
                assert!(found.iter().any(|h| h.contains(heading)), "{at}: no {heading:?} among {found:?}");
            }
            let text = seen["text"].as_str().unwrap();
            for figure in figures {
                assert!(text.contains(figure.as_str()), "{at}: no {figure:?} in {text}");
            }
            // WCAG AA for text of any size.
            assert!(seen["contrast"].as_f64().unwrap() >= 4.5, "{at}: contrast {}", seen["contrast"]);
            let is_dark = seen["page"].as_f64().unwrap() < 0.1;
            assert_eq!(is_dark, scheme == "dark", "{at}: the page's luminance is {}", seen["page"]);

            let png = page.screenshot(width);
            if let Some(folder) = std::env::var_os("DFKA_SCREENSHOTS") {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(Path::new(&folder).join(format!("{name}-{width}-{scheme}.png")), &png)
                    .unwrap();
            }
            check_not_blank(&at, &png, width);
        }
    }
}

fn check_not_blank(at: &str, png: &[u8], width: u32) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(info.width, width, "{at}");
    let step = info.color_type.samples();
    let first = &pixels[..step];
    let colors: BTreeSet<&[u8]> = pixels.chunks_exact(step).collect();
    let drawn = pixels.chunks_exact(step).filter(|p| *p != first).count();
    assert!(colors.len() > 50, "{at}: {} colours", colors.len());
    assert!(drawn * 20 > pixels.len() / step, "{at}: {drawn} of {} pixels are drawn on", pixels.len() / step);
}

fn run(lab: &Lab, args: &[&str], expected: i32) {
    let out = lab.call(args);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(expected), "{args:?}: {text}");
}

#[test]
fn reports_read_well_in_a_browser() {
    let Some(browser) = browser() else { return };
    let lab = Lab::new();
    let steps = ["--quiet", "--set", "generator.steps=30", "--set", "dual.steps=[8, 8, 8, 8]"];
    let with = |args: &[&'static str]| [&["run"], args, &steps[..]].concat();

    run(
        &lab,
        &with(&[
            "c.toml",
            "--out",
            "complete",
            "--set",
            "baselines.noise=true",
            "--set",
            "baselines.ka=ka.npz",
        ]),
        0,
    );
    let config = std::fs::read_to_string(lab.path("c.toml")).unwrap();
    let (bare, _) = config.split_once("[evaluation]").unwrap();
    std::fs::write(lab.path("bare.toml"), bare).unwrap();
    run(&lab, &with(&["bare.toml", "--out", "bare"]), 0);
    run(&lab, &with(&["c.toml", "--out", "failed", "--set", "loss.least_diversity=2"]), 7);

    // A run that was killed in its third block: no summary, half a line of metrics.
    std::fs::create_dir(lab.path("unfinished")).unwrap();
    let metrics = String::from_utf8(lab.bytes("complete/metrics.jsonl")).unwrap();
    let cut = metrics.match_indices("{\"stage\":\"block3\",\"step\":5").next().unwrap().0;
    std::fs::write(lab.path("unfinished/metrics.jsonl"), &metrics[..cut + 20]).unwrap();
    for name in ["resolved.toml", "run.json", "samples-0.png", "samples-9.png"] {
        std::fs::copy(lab.path("complete").join(name), lab.path("unfinished").join(name)).unwrap();
    }
    run(&lab, &["report", "unfinished"], 0);

    // Names that contain markup, or are far too long.
    let long = "a-label-without-a-single-space-".repeat(6);
    let hostile = ["<script>alert(1)</script>", "\"><img src=x onerror=alert(2)>", &long];
    npz::save(lab.path("left.npz"), &teacher_tensors(&network(), &hostile, 1)).unwrap();
    crate::common::labelled(40, network().image, &[&hostile[..], &crate::common::RIGHT].concat(), 4)
        .save(lab.path("evaluation.npz"))
        .unwrap();
    let config = config
        .replace("name = \"left\"", "name = '</td><script>alert(3)</script>'")
        .replace("\"tiny\"", "'a & b'");
    std::fs::write(lab.path("hostile.toml"), config + "# <script>alert(4)</script>\n").unwrap();
    run(&lab, &with(&["hostile.toml", "--out", "hostile"]), 0);

    let summary: Summary = serde_json::from_slice(&lab.bytes("complete/summary.json")).unwrap();
    let student = summary.student.unwrap().score;
    let teachers = summary.teachers["mean"].map;
    let mut figures = vec![
        format!("mean average precision of {:.1} %. Its 2 teachers reach {teachers:.1} %", student.map),
        format!("keeps {:.1} % of that", 100.0 * student.map / teachers),
        "on random noise in place of images".into(),
        "(KA)".into(),
        "after 0 steps (0 %)".into(),
        "after 30 steps (100 %)".into(),
        "teacher left".into(),
    ];
    figures.extend(student.ap.values().map(|ap| format!("{ap:.1}")));
    let all = [
        "Average precision by label",
        "Where to branch",
        "Generated images",
        "Losses by step",
        "Time",
        "Parameters",
        "How it was made",
        "Resolved config",
    ];
    let page = &mut Page::open(&browser);
    look(page, "complete", &lab.path("complete/report.html"), &all, &figures);
    let figures =
        ["it recognises 5 labels of 2 teachers", "was not measured", "no labelled images (evaluation.data)"];
    look(page, "bare", &lab.path("bare/report.html"), &all, &figures.map(String::from));
    let figures =
        ["This run failed: generator: collapsed", "30 of 62 training steps are done", "after 30 steps"];
    let some = ["Generated images", "Losses by step", "How it was made"];
    look(page, "failed", &lab.path("failed/report.html"), &some, &figures.map(String::from));
    let figures = ["has not finished", "step 5 of 8 of block3", "No block is chosen yet", "Not measured yet"];
    let some = [&all[1..5], &["unfinished"]].concat();
    look(page, "unfinished", &lab.path("unfinished/report.html"), &some, &figures.map(String::from));
    let figures = [hostile[0], hostile[1], hostile[2], "teacher </td><script>alert(3)</script>", "a & b"];
    look(page, "hostile", &lab.path("hostile/report.html"), &all, &figures.map(String::from));
}
