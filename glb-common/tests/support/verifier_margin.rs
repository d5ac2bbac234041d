//! The margin to the verifier's limit that every program keeps.

/// The verifier refuses a program for which it must walk more instructions.
const LIMIT: u32 = 1_000_000;
/// The most that a program of this project may need, on any supported kernel.
const MOST: u32 = 200_000;

/// Prints how many instructions the verifier walked for each program, one line per program, and
/// fails if one needed more than [`MOST`].
pub(crate) fn assert<'a>(programs: impl Iterator<Item = (&'a str, aya::programs::ProgramInfo)>) {
    let mut too_many = Vec::new();
    for (name, info) in programs {
        // The kernel tells it since Linux 5.16.
        let walked = info.verified_instruction_count().expect("the count of instructions");
        println!("verifier: {name} {walked} {:.1} %", f64::from(walked) / f64::from(LIMIT) * 100.0);
        if walked > MOST {
            too_many.push(format!("{name} needs {walked} instructions, more than {MOST}"));
        }
    }
    assert!(too_many.is_empty(), "{}", too_many.join("\n"));
}
