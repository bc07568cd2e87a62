//! The committed corpora of `fuzz/`, replayed: what a fuzzer has reached stays as it was.

use std::{fs, path::Path};

#[path = "../../fuzz/src/wire.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate has them in public")]
mod targets;

#[test]
fn corpora() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(root.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{}", path.display());
            inputs += 1;
        }
        assert!(inputs >= 5, "the corpus of {name} holds {inputs}");
        println!("{name}: {inputs} inputs");
    }
}
