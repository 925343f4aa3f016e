//! What generated images were asked to show, and what models see in them.

/// The images of one picture.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Captions {
    /// `teachers` or `student`.
    pub predicted_by: String,
    /// In the order of the picture.
    pub images: Vec<Caption>,
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Caption {
    /// Its place in the picture, from 1.
    pub image: usize,
    /// The labels that it was asked to show; absent for an unconditional generator.
    pub asked: Option<Vec<String>>,
    /// The labels that are predicted for it.
    pub predicted: Vec<String>,
}

/// Most images of a picture, as many as `sample` draws.
const MOST_IMAGES: usize = 4096;

impl Captions {
    /// Captions of images, from labels in the order of `asked` and the predictions for each image. A label of
    /// several teachers is named once.
    pub fn new(by: &str, labels: Option<&[String]>, asked: &[bool], predicted: Vec<Vec<String>>) -> Captions {
        let of_image = |i: usize| {
            let labels = labels?;
            let asked = labels.iter().zip(asked.iter().skip(i * labels.len()));
            Some(once(asked.filter(|(_, is_asked)| **is_asked).map(|(label, _)| label.clone())))
        };
        let caption = |(i, predicted): (usize, Vec<String>)| Caption {
            image: i + 1,
            asked: of_image(i),
            predicted: once(predicted.into_iter()),
        };
        Captions { predicted_by: by.into(), images: predicted.into_iter().enumerate().map(caption).collect() }
    }

    /// Errors: images that are not numbered from 1, or too many.
    pub fn validate(&self) -> Result<(), String> {
        let n = self.images.len();
        match self.images.iter().enumerate().find(|(i, caption)| caption.image != i + 1) {
            Some((i, caption)) => Err(format!("expected image {}, found image {}", i + 1, caption.image)),
            None if n > MOST_IMAGES => Err(format!("expected at most {MOST_IMAGES} images, found {n}")),
            None => Ok(()),
        }
    }
}

/// The labels without repetitions, in their order.
fn once(labels: impl Iterator<Item = String>) -> Vec<String> {
    let mut out = Vec::new();
    for label in labels {
        if !out.contains(&label) {
            out.push(label);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_name_each_label_once_and_number_the_images() {
        let names = |all: &[&str]| all.iter().map(|l| l.to_string()).collect::<Vec<_>>();
        let labels = names(&["bus", "car", "bus"]);
        let asked = [true, false, true, false, true, false];
        let predicted = vec![names(&["car", "car"]), vec![]];
        let found = Captions::new("teachers", Some(&labels), &asked, predicted.clone());
        assert_eq!(found.images[0].asked, Some(names(&["bus"])));
        assert_eq!(found.images[1].asked, Some(names(&["car"])));
        assert_eq!((found.images[0].predicted.clone(), found.images[1].image), (names(&["car"]), 2));
        found.validate().unwrap();
        let unconditional = Captions::new("student", None, &[], predicted);
        assert!(unconditional.images.iter().all(|i| i.asked.is_none()));
        let strange = Captions { images: vec![Caption::default()], ..Captions::default() };
        assert_eq!(strange.validate().unwrap_err(), "expected image 1, found image 0");
    }
}
