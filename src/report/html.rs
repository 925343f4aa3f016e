//! Helpers of the HTML pages: escaping, running text, tables, embedded images, the style sheet.

use super::table::Table;

pub(super) const STYLE: &str = include_str!("style.css");

/// Running text: escaped, with `code` between backticks, and a no-break space between a number and its unit.
pub(super) fn prose(text: &str) -> String {
    let parts: Vec<String> = unbroken(text).split('`').map(escape).collect();
    if parts.len().is_multiple_of(2) {
        return escape(&unbroken(text)); // an unpaired backtick
    }
    let one = |(i, part)| if i % 2 == 0 { part } else { format!("<code>{part}</code>") };
    parts.into_iter().enumerate().map(one).collect()
}

/// Puts a no-break space between a number and the unit that follows it.
fn unbroken(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_digit = false;
    for word in text.split_inclusive(' ') {
        let unit = word.trim_end_matches([' ', '.', ',', ':', ';', ')']);
        if is_digit && ["%", "s", "min", "h", "M"].contains(&unit) {
            out.pop();
            out.push('\u{a0}');
        }
        out += word;
        is_digit = word.trim_end().ends_with(|c: char| c.is_ascii_digit());
    }
    out
}

pub(super) fn html_table(table: &Table) -> String {
    marked_table(table, None)
}

/// A table whose row `marked` is highlighted.
pub(super) fn marked_table(table: &Table, marked: Option<usize>) -> String {
    let row = |cells: &[String]| {
        let figures: String = cells.iter().skip(1).map(|c| format!("<td>{}</td>", escape(c))).collect();
        format!("<th scope=\"row\">{}</th>{figures}", escape(&cells[0]))
    };
    let head: String = table.header.iter().map(|h| format!("<th scope=\"col\">{}</th>", escape(h))).collect();
    let first_total = table.rows.len() - table.totals;
    let class = |i: usize| match i {
        i if i >= first_total => " class=\"total\"",
        i if marked == Some(i) => " class=\"chosen\"",
        _ => "",
    };
    let body: String =
        table.rows.iter().enumerate().map(|(i, r)| format!("<tr{}>{}</tr>", class(i), row(r))).collect();
    let heading =
        if table.title.is_empty() { String::new() } else { format!("<h2>{}</h2>", escape(&table.title)) };
    format!(
        "{heading}<div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )
}

/// An `img` element that carries the PNG itself.
pub(super) fn image(alt: &str, png: &[u8]) -> String {
    format!("<img alt=\"{}\" src=\"{}\">", escape(alt), data_of(png))
}

/// A PNG as the address of itself.
pub(super) fn data_of(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(png))
}

/// Escapes text for any place in the page, attributes included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            other => out.push(other),
        }
    }
    out
}

/// Base64 of RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let word = part.iter().enumerate().fold(0u32, |word, (i, b)| word | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= part.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backticks_make_code_in_pairs() {
        assert_eq!(prose("a `<b>` c"), "a <code>&lt;b&gt;</code> c");
        assert_eq!(prose("one ` <only>"), "one ` &lt;only&gt;");
    }

    #[test]
    fn numbers_keep_their_units() {
        assert_eq!(
            unbroken("in 3 min 45 s, 95.4 % of 20 labels"),
            "in 3\u{a0}min 45\u{a0}s, 95.4\u{a0}% of 20 labels"
        );
    }

    #[test]
    fn base64_matches_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
