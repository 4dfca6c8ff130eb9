//! A small writer of ONNX graphs: every node has one output, of the same name, with shape and doc string.

use onnx_protobuf::{
    attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto, AttributeProto, GraphProto,
    NodeProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
};
use protobuf::MessageField;

/// A dimension of a value: a number, or a name for what is only known at run time.
#[derive(Clone, Copy)]
pub enum Dim {
    /// A size fixed by the configuration.
    Size(usize),
    /// A size of the input: an expression like `N` or `N+1`.
    Symbol(&'static str),
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Dim::Size(size)
    }
}

/// The element types that occur.
#[derive(Clone, Copy)]
pub enum Elem {
    /// 32-bit floats.
    F32,
    /// 16-bit floats: stored weights.
    F16,
    /// 64-bit signed integers: ids, positions, shapes.
    I64,
    /// Bytes: quantised activations, pixels.
    U8,
    /// Signed bytes: quantised weights.
    I8,
    /// Truth values.
    Bool,
}

impl Elem {
    /// The number that stands for the type in attributes (`to` of `Cast`).
    pub const fn code(self) -> i32 {
        match self {
            Elem::F32 => DataType::FLOAT as i32,
            Elem::F16 => DataType::FLOAT16 as i32,
            Elem::I64 => DataType::INT64 as i32,
            Elem::U8 => DataType::UINT8 as i32,
            Elem::I8 => DataType::INT8 as i32,
            Elem::Bool => DataType::BOOL as i32,
        }
    }
}

/// An attribute of a node.
pub enum Attr<'a> {
    /// `name = integer`
    Int(&'static str, i64),
    /// `name = integers`
    Ints(&'static str, &'a [i64]),
    /// `name = float`
    Float(&'static str, f32),
    /// `name = text`
    Text(&'static str, &'static str),
}

/// A graph under construction. Values are referred to by name; methods that make one return its name.
#[derive(Default)]
pub struct Graph {
    proto: GraphProto,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str, doc: &str) -> Self {
        Self { proto: GraphProto { name: name.into(), doc_string: doc.into(), ..Default::default() } }
    }

    /// Declares an input of the graph.
    pub fn input(&mut self, name: &str, elem: Elem, dims: &[Dim], doc: &str) -> String {
        self.proto.input.push(value_info(name, elem, dims, doc));
        name.into()
    }

    /// Declares that a value made by a node is an output of the graph.
    pub fn output(&mut self, name: &str) {
        // Its description moves: a value is listed once.
        if let Some(at) = self.proto.value_info.iter().position(|value| value.name == name) {
            let value = self.proto.value_info.remove(at);
            self.proto.output.push(value);
        }
    }

    /// Adds a constant of floats.
    pub fn floats(&mut self, name: impl Into<String>, dims: &[usize], values: &[f32], doc: &str) -> String {
        let bytes = || values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name.into(), Elem::F32, dims, bytes, doc)
    }

    /// Adds a constant of integers.
    pub fn ints(&mut self, name: impl Into<String>, dims: &[usize], values: &[i64], doc: &str) -> String {
        let bytes = || values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name.into(), Elem::I64, dims, bytes, doc)
    }

    /// Adds a constant of any type, little-endian; one of this name that is there already is taken as it is.
    pub fn constant(
        &mut self,
        name: String,
        elem: Elem,
        dims: &[usize],
        bytes: impl FnOnce() -> Vec<u8>,
        doc: &str,
    ) -> String {
        if self.proto.initializer.iter().all(|constant| constant.name != name) {
            self.proto.initializer.push(TensorProto {
                name: name.clone(),
                dims: dims.iter().map(|&dim| dim as i64).collect(),
                data_type: elem.code(),
                raw_data: bytes(),
                doc_string: doc.into(),
                ..Default::default()
            });
        }
        name
    }

    /// Starts a node; it is added by saying what its output is.
    pub fn node(&mut self, op: &str, name: impl Into<String>, inputs: &[&str]) -> Node<'_> {
        let name = name.into();
        let proto = NodeProto {
            op_type: op.into(),
            output: vec![name.clone()],
            name,
            input: inputs.iter().map(|input| input.to_string()).collect(),
            ..Default::default()
        };
        Node { graph: self, proto }
    }

    /// The finished graph.
    pub fn finish(self) -> GraphProto {
        self.proto
    }
}

/// A node under construction.
#[must_use = "a node is added by `floats`, `ints` or `gives`"]
pub struct Node<'g> {
    graph: &'g mut Graph,
    proto: NodeProto,
}

impl Node<'_> {
    /// With an attribute.
    pub fn with(mut self, attr: Attr) -> Self {
        self.proto.attribute.push(attribute(&attr));
        self
    }

    /// Adds the node; its output, of floats, has this shape and meaning. Returns the output's name.
    pub fn floats(self, dims: &[Dim], doc: &str) -> String {
        self.gives(Elem::F32, dims, doc)
    }

    /// Adds the node; its output, of 64-bit integers, has this shape and meaning.
    pub fn ints(self, dims: &[Dim], doc: &str) -> String {
        self.gives(Elem::I64, dims, doc)
    }

    /// Adds the node; its output has this type, shape and meaning.
    pub fn gives(mut self, elem: Elem, dims: &[Dim], doc: &str) -> String {
        let name = self.proto.name.clone();
        self.proto.doc_string = doc.into();
        self.graph.proto.value_info.push(value_info(&name, elem, dims, doc));
        self.graph.proto.node.push(self.proto);
        name
    }
}

/// A key and a value of a model's metadata.
pub fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value: value.into(), ..Default::default() }
}

fn attribute(attr: &Attr) -> AttributeProto {
    let proto = |name: &str, type_: AttributeType| AttributeProto {
        name: name.into(),
        type_: type_.into(),
        ..Default::default()
    };
    match *attr {
        Attr::Int(name, i) => AttributeProto { i, ..proto(name, AttributeType::INT) },
        Attr::Ints(name, ints) => AttributeProto { ints: ints.to_vec(), ..proto(name, AttributeType::INTS) },
        Attr::Float(name, f) => AttributeProto { f, ..proto(name, AttributeType::FLOAT) },
        Attr::Text(name, text) => AttributeProto { s: text.into(), ..proto(name, AttributeType::STRING) },
    }
}

fn value_info(name: &str, elem: Elem, dims: &[Dim], doc: &str) -> ValueInfoProto {
    let dimension = |dim: &Dim| tensor_shape_proto::Dimension {
        value: Some(match *dim {
            Dim::Size(size) => tensor_shape_proto::dimension::Value::DimValue(size as i64),
            Dim::Symbol(name) => tensor_shape_proto::dimension::Value::DimParam(name.into()),
        }),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dimension).collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: elem.code(), shape: MessageField::some(shape), ..Default::default() };
    let type_ = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: MessageField::some(type_), doc_string: doc.into(), ..Default::default() }
}
