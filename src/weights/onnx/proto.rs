//! The messages of onnx.proto that our models need, under the names that ONNX gives them (onnx 1.12, IR
//! version 8). Only the fields that we use are here.
//!
//! onnx.proto is written in proto2, which distinguishes a field that is absent from one that holds its
//! default. That is why all fields are optional.

#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSetIdProto {
    /// Empty for ONNX's own operators.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StringStringEntryProto {
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// In topological order.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// One of [`attribute_type`]; ONNX calls the field `type`.
    #[prost(int32, optional, tag = "20")]
    pub kind: Option<i32>,
}

/// ONNX's AttributeProto.AttributeType.
pub mod attribute_type {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const INTS: i32 = 7;
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// One of [`data_type`].
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// Elements in C order, little-endian.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
}

/// ONNX's TensorProto.DataType.
pub mod data_type {
    pub const FLOAT: i32 = 1;
    pub const INT64: i32 = 7;
    pub const FLOAT16: i32 = 10;
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TypeProtoTensor>,
}

/// ONNX's TypeProto.Tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProtoTensor {
    /// One of [`data_type`].
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// A dimension: either `value` or `param` is set. ONNX's TensorShapeProto.Dimension.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub value: Option<i64>,
    /// The name of a dimension of any size.
    #[prost(string, optional, tag = "2")]
    pub param: Option<String>,
}

impl TensorProto {
    /// A float tensor; `data` is in C order.
    pub fn floats(name: &str, shape: &[usize], data: &[f32]) -> TensorProto {
        let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorProto::raw(name, shape, data_type::FLOAT, bytes)
    }

    /// A vector of int64.
    pub fn int64s(name: &str, data: &[i64]) -> TensorProto {
        let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorProto::raw(name, &[data.len()], data_type::INT64, bytes)
    }

    fn raw(name: &str, shape: &[usize], kind: i32, bytes: Vec<u8>) -> TensorProto {
        TensorProto {
            dims: shape.iter().map(|d| *d as i64).collect(),
            data_type: Some(kind),
            name: Some(name.into()),
            raw_data: Some(bytes),
        }
    }
}

impl NodeProto {
    /// A node with one output; the node has the output's name.
    pub fn new(op: &str, inputs: Vec<String>, output: &str) -> NodeProto {
        let output = output.to_string();
        NodeProto {
            input: inputs,
            name: Some(output.clone()),
            output: vec![output],
            op_type: Some(op.into()),
            ..NodeProto::default()
        }
    }

    /// Adds the integer attribute `name`.
    pub fn int(mut self, name: &str, value: i64) -> NodeProto {
        let (name, kind) = (Some(name.into()), Some(attribute_type::INT));
        self.attribute.push(AttributeProto { name, kind, i: Some(value), ..AttributeProto::default() });
        self
    }

    /// Adds the attribute `name`, a list of integers.
    pub fn ints(mut self, name: &str, values: &[usize]) -> NodeProto {
        let (name, kind) = (Some(name.into()), Some(attribute_type::INTS));
        let ints = values.iter().map(|v| *v as i64).collect();
        self.attribute.push(AttributeProto { name, kind, ints, ..AttributeProto::default() });
        self
    }

    /// Adds the float attribute `name`.
    pub fn float(mut self, name: &str, value: f32) -> NodeProto {
        let (name, kind) = (Some(name.into()), Some(attribute_type::FLOAT));
        self.attribute.push(AttributeProto { name, kind, f: Some(value), ..AttributeProto::default() });
        self
    }
}

impl ValueInfoProto {
    /// A float tensor of any number of samples, each of the shape `sample`: `[N, sample..]`.
    pub fn batch(name: &str, sample: &[usize]) -> ValueInfoProto {
        let fixed = sample.iter().map(|d| Dimension { value: Some(*d as i64), param: None });
        let dim = [Dimension { value: None, param: Some("N".into()) }].into_iter().chain(fixed).collect();
        let tensor =
            TypeProtoTensor { elem_type: Some(data_type::FLOAT), shape: Some(TensorShapeProto { dim }) };
        ValueInfoProto { name: Some(name.into()), kind: Some(TypeProto { tensor: Some(tensor) }) }
    }
}

impl StringStringEntryProto {
    pub fn new(key: &str, value: String) -> StringStringEntryProto {
        StringStringEntryProto { key: Some(key.into()), value: Some(value) }
    }
}
