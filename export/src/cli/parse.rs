//! What every program here asks of clap.

use clap::{builder::StyledStr, Arg, Command, CommandFactory, FromArgMatches};

use super::output::end;

/// Columns of a usage line.
const WIDTH: usize = 80;

/// The arguments of this process; ends it where they are wrong (exit code 2) or help was asked for (0).
pub fn parse<C: CommandFactory + FromArgMatches>() -> C {
    let parsed = prepared(C::command()).try_get_matches().and_then(|matches| C::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| end(&error))
}

/// With numbers that may be negative, and usage lines that fit.
fn prepared(command: Command) -> Command {
    let mut command = may_be_negative(command);
    command.build(); // usage lines name the programs above a verb from here on
    with_short_usage(command)
}

/// Lets every flag with a value take `-1`, so that what is wrong with it is said of the flag.
fn may_be_negative(command: Command) -> Command {
    let takes_value = |arg: &Arg| arg.get_action().takes_values();
    command
        .mut_args(|arg| if takes_value(&arg) { arg.allow_negative_numbers(true) } else { arg })
        .mut_subcommands(may_be_negative)
}

/// Breaks usage lines that are too long before flags, and before groups of them: clap does not.
fn with_short_usage(mut command: Command) -> Command {
    for verb in command.get_subcommands_mut() {
        *verb = with_short_usage(std::mem::take(verb));
    }
    let usage = command.render_usage();
    let (plain, styled) = (usage.to_string(), usage.ansi().to_string());
    if plain.len() <= WIDTH {
        return command;
    }
    // What stays together: a flag and its value, alternatives in brackets.
    let mut parts: Vec<(usize, String)> = Vec::new(); // columns, and the text
    let mut depth = 0;
    for (word, styled) in plain.split(' ').zip(styled.split(' ')).skip(1) {
        let is_value = word.starts_with('<') && !word.starts_with("<-");
        match parts.last_mut() {
            Some((columns, text)) if depth > 0 || is_value => {
                *columns += 1 + word.len();
                *text += &format!(" {styled}");
            }
            _ => parts.push((word.len(), styled.to_owned())),
        }
        depth += word.matches('<').count() as i32 - word.matches('>').count() as i32;
    }
    let (mut text, mut used) = (String::new(), "Usage:".len()); // that, clap writes
    for (columns, part) in parts {
        if used + 1 + columns > WIDTH {
            text += "\n      ";
            used = "Usage:".len();
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text += &part;
        used += 1 + columns;
    }
    command.override_usage(StyledStr::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(name: &'static str) -> Arg {
        Arg::new(name).long(name).value_name("FILE").required(true)
    }

    /// `--steps -1` is about --steps, not about a flag called -1; at any depth.
    #[test]
    fn numbers_may_be_negative_to_be_refused() {
        let steps = flag("steps").value_parser(clap::value_parser!(u8));
        let verb = Command::new("verb").arg(steps);
        let command = prepared(Command::new("test").subcommand(Command::new("group").subcommand(verb)));
        let error = command.try_get_matches_from(["test", "group", "verb", "--steps", "-1"]).unwrap_err();
        assert!(error.to_string().contains("'-1' for '--steps <FILE>'"), "{error}");
    }

    #[test]
    fn long_usage_is_broken_between_flags() {
        let group = clap::ArgGroup::new("group").args(["abcdefghij", "klmnopqrst"]).required(true);
        let verb = Command::new("verb")
            .args([flag("a-flag-of-forty-columns-or-more"), flag("another")])
            .args([flag("abcdefghij").required(false), flag("klmnopqrst").required(false)])
            .group(group);
        let mut command = prepared(Command::new("test").subcommand(verb));
        let usage = command.find_subcommand_mut("verb").unwrap().render_usage().to_string();
        let expected = "Usage: test verb --a-flag-of-forty-columns-or-more <FILE> --another <FILE>\n       \
                        <--abcdefghij <FILE>|--klmnopqrst <FILE>>";
        assert_eq!(usage, expected);
    }
}
