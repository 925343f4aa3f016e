//! The part of onnx.proto that a model of ours needs, by its field numbers (onnx 1.12, IR version 8). onnx.proto is
//! proto2: a field that stands there is told from its default, hence the options.

#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Property>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSet {
    /// Empty: ONNX's own operators.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Property {
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Graph {
    /// In an order in which they can be computed.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Attribute {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// [`attribute_type`]
    #[prost(int32, optional, tag = "20")]
    pub kind: Option<i32>,
}

/// AttributeProto.AttributeType
pub mod attribute_type {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const INTS: i32 = 7;
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Tensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// [`data_type`]
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// Elements in C order, least significant byte first.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
}

/// TensorProto.DataType
pub mod data_type {
    pub const FLOAT: i32 = 1;
    pub const INT64: i32 = 7;
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfo {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub kind: Option<Type>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorType {
    /// [`data_type`]
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dim>,
}

/// One of the two.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dim {
    #[prost(int64, optional, tag = "1")]
    pub value: Option<i64>,
    /// A name, for a size that may be any.
    #[prost(string, optional, tag = "2")]
    pub param: Option<String>,
}

impl Tensor {
    /// Elements in C order.
    pub fn floats(name: &str, shape: &[usize], data: &[f32]) -> Tensor {
        let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::raw(name, shape, data_type::FLOAT, bytes)
    }

    /// A vector.
    pub fn int64s(name: &str, data: &[i64]) -> Tensor {
        let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::raw(name, &[data.len()], data_type::INT64, bytes)
    }

    fn raw(name: &str, shape: &[usize], kind: i32, bytes: Vec<u8>) -> Tensor {
        Tensor {
            dims: shape.iter().map(|d| *d as i64).collect(),
            data_type: Some(kind),
            name: Some(name.into()),
            raw_data: Some(bytes),
        }
    }
}

impl Node {
    /// A node of one output, named after it.
    pub fn new(op: &str, inputs: Vec<String>, output: &str) -> Node {
        let output = output.to_string();
        Node {
            input: inputs,
            name: Some(output.clone()),
            output: vec![output],
            op_type: Some(op.into()),
            ..Node::default()
        }
    }

    pub fn int(mut self, name: &str, value: i64) -> Node {
        let (name, kind) = (Some(name.into()), Some(attribute_type::INT));
        self.attribute.push(Attribute { name, kind, i: Some(value), ..Attribute::default() });
        self
    }

    pub fn ints(mut self, name: &str, values: &[usize]) -> Node {
        let (name, kind) = (Some(name.into()), Some(attribute_type::INTS));
        let ints = values.iter().map(|v| *v as i64).collect();
        self.attribute.push(Attribute { name, kind, ints, ..Attribute::default() });
        self
    }

    pub fn float(mut self, name: &str, value: f32) -> Node {
        let (name, kind) = (Some(name.into()), Some(attribute_type::FLOAT));
        self.attribute.push(Attribute { name, kind, f: Some(value), ..Attribute::default() });
        self
    }
}

impl ValueInfo {
    /// A float tensor of any number of samples, each of the shape `sample`.
    pub fn batch(name: &str, sample: &[usize]) -> ValueInfo {
        let fixed = sample.iter().map(|d| Dim { value: Some(*d as i64), param: None });
        let dim = [Dim { value: None, param: Some("N".into()) }].into_iter().chain(fixed).collect();
        let tensor = TensorType { elem_type: Some(data_type::FLOAT), shape: Some(Shape { dim }) };
        ValueInfo { name: Some(name.into()), kind: Some(Type { tensor: Some(tensor) }) }
    }
}

impl Property {
    pub fn new(key: &str, value: String) -> Property {
        Property { key: Some(key.into()), value: Some(value) }
    }
}
