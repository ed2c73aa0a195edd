//! Goal: a change of one pod or node costs edge-cloud work for that node only. Method: the benchmark of that
//! name and its bar. It counts CPU time, so a busy host does not matter to it; and this build, which is not
//! optimized, needs more of it than that of the benchmark.

#[path = "../benches/one_change/fleet.rs"]
mod fleet;

#[tokio::test]
async fn one_change_among_ten_thousand_nodes_costs_little() {
    for figure in fleet::measure().await {
        println!("{figure}");
        assert!(figure.ok(), "{figure}");
    }
}
