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
    /// 64-bit signed integers: ids, positions, shapes.
    I64,
}

impl Elem {
    const fn code(self) -> i32 {
        match self {
            Elem::F32 => DataType::FLOAT as i32,
            Elem::I64 => DataType::INT64 as i32,
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
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name.into(), Elem::F32, dims, bytes, doc)
    }

    /// Adds a constant of integers.
    pub fn ints(&mut self, name: impl Into<String>, dims: &[usize], values: &[i64], doc: &str) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name.into(), Elem::I64, dims, bytes, doc)
    }

    fn constant(&mut self, name: String, elem: Elem, dims: &[usize], raw_data: Vec<u8>, doc: &str) -> String {
        if self.proto.initializer.iter().all(|constant| constant.name != name) {
            self.proto.initializer.push(TensorProto {
                name: name.clone(),
                dims: dims.iter().map(|&dim| dim as i64).collect(),
                data_type: elem.code(),
                raw_data,
                doc_string: doc.into(),
                ..Default::default()
            });
        }
        name
    }

    /// Adds a node whose output has floats.
    pub fn node(
        &mut self,
        op: &str,
        name: impl Into<String>,
        inputs: &[&str],
        attributes: &[Attr],
        dims: &[Dim],
        doc: &str,
    ) -> String {
        self.typed_node(Elem::F32, op, name.into(), inputs, attributes, dims, doc)
    }

    /// Adds a node whose output has integers.
    pub fn int_node(
        &mut self,
        op: &str,
        name: impl Into<String>,
        inputs: &[&str],
        attributes: &[Attr],
        dims: &[Dim],
        doc: &str,
    ) -> String {
        self.typed_node(Elem::I64, op, name.into(), inputs, attributes, dims, doc)
    }

    #[allow(clippy::too_many_arguments, reason = "what a node is; the public methods fix the first")]
    fn typed_node(
        &mut self,
        elem: Elem,
        op: &str,
        name: String,
        inputs: &[&str],
        attributes: &[Attr],
        dims: &[Dim],
        doc: &str,
    ) -> String {
        self.proto.value_info.push(value_info(&name, elem, dims, doc));
        self.proto.node.push(NodeProto {
            op_type: op.into(),
            name: name.clone(),
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![name.clone()],
            attribute: attributes.iter().map(attribute).collect(),
            doc_string: doc.into(),
            ..Default::default()
        });
        name
    }

    /// The finished graph.
    pub fn finish(self) -> GraphProto {
        self.proto
    }
}

/// A key and a value of a model's metadata.
pub fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value: value.into(), ..Default::default() }
}

fn attribute(attr: &Attr) -> AttributeProto {
    let (name, type_) = match attr {
        Attr::Int(name, _) => (name, AttributeType::INT),
        Attr::Ints(name, _) => (name, AttributeType::INTS),
        Attr::Float(name, _) => (name, AttributeType::FLOAT),
    };
    let mut proto = AttributeProto { name: (*name).into(), type_: type_.into(), ..Default::default() };
    match attr {
        Attr::Int(_, value) => proto.i = *value,
        Attr::Ints(_, values) => proto.ints = values.to_vec(),
        Attr::Float(_, value) => proto.f = *value,
    }
    proto
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
