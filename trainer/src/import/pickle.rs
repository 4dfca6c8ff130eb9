//! Reads Python pickles as data: nothing is looked up, imported or executed.
//!
//! Values live in one list and refer to each other by number, so that no file, however nested, can
//! exhaust the stack.

use std::collections::HashMap;

/// Number of a [`Node`].
pub type Id = usize;

/// A value. What a checkpoint needs is told apart; every other object is [`Node::Opaque`].
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `None`, numbers that do not fit, bytes, sets: nothing that is read.
    Opaque,
    /// A bool or an integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// A list or a tuple.
    List(Vec<Id>),
    /// A dictionary, or an `OrderedDict`.
    Dict(Vec<(Id, Id)>),
    /// `module name`, never looked up.
    Global(String),
    /// A persistent id: in PyTorch, a storage.
    Persistent(Id),
    /// `function(*arguments)`, never called.
    Call(Id, Id),
}

/// A whole pickle.
#[derive(Clone, Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    /// What the pickle is of.
    pub root: Id,
    /// Bytes read.
    pub length: usize,
}

impl Pickle {
    /// Reads the pickle that `bytes` starts with.
    ///
    /// # Errors
    /// A description of what is wrong, and at which byte.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut reader =
            Reader { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        match reader.run() {
            Ok(root) => Ok(Self { nodes: reader.nodes, root, length: reader.at }),
            Err(what) => Err(format!("{what} before byte {}", reader.at)),
        }
    }

    /// Number of values: ids are below it.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// A value.
    pub fn get(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// The string `id`, if it is one.
    pub fn str(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The entries of list or tuple `id`, if it is one.
    pub fn list(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The list of non-negative integers `id`, if it is one, of as many as a tensor may have dimensions.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        const MOST: usize = 64;
        let size = |&id: &Id| match self.get(id) {
            Node::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        };
        self.list(id).filter(|sizes| sizes.len() <= MOST)?.iter().map(size).collect()
    }

    /// Function and arguments of the call `id`, if it is one of a named function.
    pub fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        let Node::Call(function, arguments) = *self.get(id) else { return None };
        let Node::Global(function) = self.get(function) else { return None };
        Some((function, self.list(arguments)?))
    }

    /// What a value is, in words.
    pub fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Node::Opaque => "None, bytes or another value that is not read".into(),
            Node::Int(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            Node::Str(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
            Node::List(items) => format!("a list of {}", items.len()),
            Node::Dict(entries) => format!("a dictionary of {}", entries.len()),
            Node::Global(name) => name.replace(' ', "."),
            Node::Persistent(_) => "a storage".into(),
            Node::Call(function, _) => match self.get(*function) {
                Node::Global(name) => format!("what {} makes", name.replace(' ', ".")),
                _ => "an object".into(),
            },
        }
    }

    /// The entries of dictionary `id`, if it is one.
    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Node::Dict(entries) => Some(entries),
            _ => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

type Result1<T> = Result<T, String>;

impl Reader<'_> {
    fn run(&mut self) -> Result1<Id> {
        loop {
            let [code] = self.take::<1>()?;
            match code {
                b'.' => return self.pop(),
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' | 0x8f => self.push(Node::Opaque),
                0x88 => self.push(Node::Int(1)),
                0x89 => self.push(Node::Int(0)),
                b'J' => {
                    let value = i32::from_le_bytes(self.take()?);
                    self.push(Node::Int(value.into()));
                }
                b'K' => {
                    let [value] = self.take()?;
                    self.push(Node::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take()?);
                    self.push(Node::Int(value.into()));
                }
                0x8a | 0x8b => {
                    let length = if code == 0x8a { self.take::<1>()?[0].into() } else { self.length32()? };
                    let node = small_integer(self.slice(length)?);
                    self.push(node);
                }
                b'I' | b'L' => {
                    let line = self.line()?;
                    let node = match (line, line.trim_end_matches('L').parse()) {
                        ("01", _) => Node::Int(1),
                        ("00", _) => Node::Int(0),
                        (_, Ok(value)) => Node::Int(value),
                        _ => Node::Opaque,
                    };
                    self.push(node);
                }
                b'F' => {
                    let node = self.line()?.parse().map_or(Node::Opaque, Node::Float);
                    self.push(node);
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.take()?);
                    self.push(Node::Float(value));
                }
                b'X' | b'T' => self.string(4)?,
                0x8c | b'U' => self.string(1)?,
                0x8d => self.string(8)?,
                b'V' | b'S' => {
                    let text = self.line()?.trim_matches(['\'', '"']).to_string();
                    self.push(Node::Str(text));
                }
                b'B' | b'C' | 0x8e => {
                    let length = self.length(if code == b'B' {
                        4
                    } else if code == b'C' {
                        1
                    } else {
                        8
                    })?;
                    self.slice(length)?;
                    self.push(Node::Opaque);
                }
                b']' | b')' => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                b'l' | b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items));
                }
                b'd' => {
                    let entries = pairs(&self.pop_mark()?)?;
                    self.push(Node::Dict(entries));
                }
                0x85..=0x87 => {
                    let start = self.stack.len().checked_sub(usize::from(code - 0x84)).ok_or("stack is empty")?;
                    let items = self.stack.split_off(start);
                    self.push(Node::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend_list(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.extend_dict(vec![(key, value)])?;
                }
                b'u' => {
                    let entries = pairs(&self.pop_mark()?)?;
                    self.extend_dict(entries)?;
                }
                b'p' => {
                    let index = self.line()?.parse().map_err(|_| "memo number expected")?;
                    self.memoise(index)?;
                }
                b'q' => {
                    let [index] = self.take()?;
                    self.memoise(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.memoise(index.into())?;
                }
                0x94 => self.memoise(self.memo.len() as u64)?,
                b'g' => {
                    let index = self.line()?.parse().map_err(|_| "memo number expected")?;
                    self.recall(index)?;
                }
                b'h' => {
                    let [index] = self.take()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.recall(index.into())?;
                }
                b'c' => {
                    let module = self.line()?.to_string();
                    let name = format!("{module} {}", self.line()?);
                    self.push(Node::Global(name));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let text = |id: Id| match &self.nodes[id] {
                        Node::Str(text) => text.as_str(),
                        _ => "?",
                    };
                    let name = format!("{} {}", text(module), text(name));
                    self.push(Node::Global(name));
                }
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let node = match &self.nodes[function] {
                        Node::Global(name) if name == "collections OrderedDict" => Node::Dict(Vec::new()),
                        _ => Node::Call(function, arguments),
                    };
                    self.push(node);
                }
                0x92 => {
                    self.pop()?;
                    self.pop()?;
                    self.pop()?;
                    self.push(Node::Opaque);
                }
                b'o' => {
                    self.pop_mark()?;
                    self.push(Node::Opaque);
                }
                b'i' => {
                    self.line()?;
                    self.line()?;
                    self.pop_mark()?;
                    self.push(Node::Opaque);
                }
                b'b' => drop(self.pop()?), // an object's state: the object stays as it is
                b'P' => {
                    let text = self.line()?.to_string();
                    self.push(Node::Str(text));
                    let id = self.pop()?;
                    self.push(Node::Persistent(id));
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id));
                }
                other => return Err(format!("unknown pickle opcode {other:#04x}")),
            }
        }
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result1<Id> {
        if self.marks.last() == Some(&self.stack.len()) {
            return Err("stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "stack is empty".into())
    }

    fn pop_mark(&mut self) -> Result1<Vec<Id>> {
        let start = self.marks.pop().ok_or("no mark")?;
        Ok(self.stack.split_off(start.min(self.stack.len())))
    }

    fn top(&self) -> Result1<Id> {
        self.stack.last().copied().ok_or_else(|| "stack is empty".into())
    }

    /// Objects that are no list swallow what is added to them.
    fn extend_list(&mut self, items: Vec<Id>) -> Result1<()> {
        let top = self.top()?;
        if let Node::List(list) = &mut self.nodes[top] {
            list.extend(items);
        }
        Ok(())
    }

    /// An object that takes entries is a dictionary, of whatever class.
    fn extend_dict(&mut self, entries: Vec<(Id, Id)>) -> Result1<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Dict(dict) => dict.extend(entries),
            object @ Node::Call(..) => *object = Node::Dict(entries),
            _ => {}
        }
        Ok(())
    }

    fn memoise(&mut self, index: u64) -> Result1<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result1<()> {
        let id = *self.memo.get(&index).ok_or_else(|| format!("nothing memoised as {index}"))?;
        self.stack.push(id);
        Ok(())
    }

    fn slice(&mut self, length: usize) -> Result1<&[u8]> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len()).ok_or("file ends")?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Result1<[u8; N]> {
        self.slice(N)?.try_into().map_err(|_| "file ends".into())
    }

    fn length32(&mut self) -> Result1<usize> {
        Ok(u32::from_le_bytes(self.take()?) as usize)
    }

    fn length(&mut self, bytes: usize) -> Result1<usize> {
        match bytes {
            1 => Ok(self.take::<1>()?[0].into()),
            4 => self.length32(),
            _ => usize::try_from(u64::from_le_bytes(self.take()?)).map_err(|_| "length too large".into()),
        }
    }

    fn string(&mut self, length_bytes: usize) -> Result1<()> {
        let length = self.length(length_bytes)?;
        let text = String::from_utf8_lossy(self.slice(length)?).into_owned();
        self.push(Node::Str(text));
        Ok(())
    }

    fn line(&mut self) -> Result1<&str> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("line does not end")?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| "line is not text".into())
    }
}

fn pairs(items: &[Id]) -> Result1<Vec<(Id, Id)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a key without a value".into()),
    }
}

/// A little-endian two's complement integer, where it fits.
fn small_integer(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Opaque;
    }
    let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xFF } else { 0 };
    let mut value = [fill; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_python_writes() {
        // pickle.dumps({"a": [1, -2, 300], "b": (70000,)}, protocol=2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01eX\x01\x00\x00\x00bq\x03J\x70\x11\x01\x00\x85q\x04u.rest";
        let pickle = Pickle::read(bytes).unwrap();
        let entries = pickle.dict(pickle.root).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(pickle.str(entries[0].0), Some("a"));
        let numbers: Vec<_> = pickle.list(entries[0].1).unwrap().iter().map(|&id| pickle.get(id).clone()).collect();
        assert_eq!(numbers, [Node::Int(1), Node::Int(-2), Node::Int(300)]);
        assert_eq!(pickle.sizes(entries[1].1), Some(vec![70_000]));
        assert_eq!(pickle.length, bytes.len() - 4);
    }

    #[test]
    fn functions_are_data() {
        // os.system("false"): a call that nobody makes.
        let pickle = Pickle::read(b"cos\nsystem\n(S'false'\ntR.").unwrap();
        let Node::Call(function, _) = *pickle.get(pickle.root) else { panic!("not a call") };
        assert_eq!(pickle.get(function), &Node::Global("os system".into()));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pickle::read(&bytes);
        }
    }
}
