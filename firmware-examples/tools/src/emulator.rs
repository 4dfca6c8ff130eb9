//! One run of a program: its log, the pictures it saved, the stack it used.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{bail, Context, Result};
use defmt_decoder::{DecodeError, Table};

use crate::{
    boards::{Board, Runner},
    toolchain::{root, target_dir},
};

/// A run takes seconds; one that hangs is ended after this.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// What a program did.
#[derive(Default)]
pub struct Run {
    /// Its log, one line an entry.
    pub log: Vec<String>,
    /// Peak of the stack in bytes, on bare metal.
    pub stack: Option<u64>,
    /// Pictures it saved, as PNG.
    pub pictures: Vec<PathBuf>,
}

/// Runs a program to its end and decodes its log; `plugin` is what QEMU is to load.
///
/// Fails where the program's exit code is not 0.
pub fn run(board: &Board, program: &Path, plugin: Option<OsString>, on_line: &mut dyn FnMut(&str)) -> Result<Run> {
    let folder = target_dir().join("pictures").join(board.name);
    fs::create_dir_all(&folder)?;
    let program = fs::canonicalize(program).with_context(|| format!("{}", program.display()))?;
    let mut command = command(board, &program, plugin);
    command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::piped());
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("{name} cannot be started; is it installed?"))?;
    let Some(stdout) = child.stdout.take() else { bail!("{name} has no output") };
    let (ended, watch) = mpsc::channel::<()>();
    let id = child.id().to_string();
    let watchdog = std::thread::spawn(move || {
        if watch.recv_timeout(TIME_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").arg(id).status(); // reported below, by its exit code
        }
    });
    let mut run = Run::default();
    let mut on_entry =
        |line: String| match line.strip_prefix("stack: ").and_then(|rest| rest.split(' ').next()?.parse().ok()) {
            Some(stack) => run.stack = Some(stack),
            None => {
                on_line(&line);
                run.log.push(line);
            }
        };
    let read = if board.is_bare() {
        decode(stdout, &fs::read(&program)?, &mut on_entry)
    } else {
        BufReader::new(stdout).lines().try_for_each(|line| line.map(&mut on_entry)).map_err(Into::into)
    };
    let status = child.wait()?;
    drop(ended);
    let _ = watchdog.join();
    read?;
    if !status.success() {
        bail!("{} on {}: {status}\n{}", program.display(), board.name, run.log.join("\n"));
    }
    run.pictures = pictures(&folder)?;
    Ok(run)
}

fn command(board: &Board, program: &Path, plugin: Option<OsString>) -> Command {
    match board.runner {
        Runner::System(words) => {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).args(["-display", "none", "-monitor", "none", "-serial", "none"]);
            command.args(["-semihosting-config", "enable=on,target=native"]);
            if let Some(plugin) = plugin {
                command.arg("-plugin").arg(plugin);
            }
            command.arg("-kernel").arg(program);
            command
        }
        Runner::Command([]) => Command::new(program),
        Runner::Command([first, rest @ ..]) => {
            let mut command = Command::new(first);
            for word in rest {
                let file = root().join(word);
                command.arg(if file.is_file() { file.into_os_string() } else { word.into() });
            }
            command.arg(program);
            command
        }
    }
}

/// Decodes defmt frames as they come.
fn decode(mut stdout: ChildStdout, elf: &[u8], on_entry: &mut dyn FnMut(String)) -> Result<()> {
    let table = Table::parse(elf)?.context("the program logs nothing by defmt")?;
    let mut decoder = table.new_stream_decoder();
    let mut buffer = [0; 4096];
    loop {
        let count = stdout.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        decoder.received(&buffer[..count]);
        loop {
            match decoder.decode() {
                Ok(frame) => on_entry(frame.display_message().to_string()),
                Err(DecodeError::UnexpectedEof) => break,
                Err(DecodeError::Malformed) => bail!("the log holds a frame that is not defmt's"),
            }
        }
    }
}

/// Turns the PPM files of a folder into PNG files.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut pictures = Vec::new();
    for entry in fs::read_dir(folder)? {
        let ppm = entry?.path();
        if ppm.extension().is_some_and(|extension| extension == "ppm") {
            let png = ppm.with_extension("png");
            let bytes = fs::read(&ppm)?;
            let pixels = bytes
                .strip_prefix(b"P6\n64 64\n255\n")
                .with_context(|| format!("{}: not a 64×64 PPM file", ppm.display()))?;
            let mut encoder = png::Encoder::new(fs::File::create(&png)?, 64, 64);
            encoder.set_color(png::ColorType::Rgb);
            encoder.write_header()?.write_image_data(pixels)?;
            fs::remove_file(&ppm)?;
            pictures.push(png);
        }
    }
    pictures.sort();
    Ok(pictures)
}
